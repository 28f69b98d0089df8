"""The life of a run on GKE: a cluster and a JobSet, both made by xpk; Cloud Scheduler holds the budget guard."""

import re
import tempfile
import time

from driver import bucket, gate, hosts
from driver.settings import CloudError, Settings
from driver.shell import MISSING, Shell
from driver.vm import show_reports

MOUNT = "/mnt/m1"
RESTARTS = 1000
GRACE_SECONDS = 300
"""What a pod gets between its notice and its end: time for `m1 train` to save."""
LONG = 3600.0
"""Seconds that xpk may take to make or delete a cluster."""
CLOUD_API = "https://container.googleapis.com/v1"


class GkeLaunch:
    """The same verbs as on TPU VMs. Kubernetes restarts what ends with "again" or is preempted, without an operator."""

    def __init__(self, settings: Settings, shell: Shell) -> None:
        """Nothing is asked of the cloud yet."""
        self.settings, self.shell = settings, shell
        self._xpk = (f"--cluster={settings.cluster}", f"--project={settings.project}", f"--zone={settings.zone}")
        self._location = (f"--location={settings.region}", f"--project={settings.project}")
        self._type = f"--tpu-type={settings.generation.accelerator}-{settings.shape}"

    def up(self, *, revision: str) -> str:
        """Creates the guard, the cluster with its slices, and the mounted bucket. A failure removes what is new."""
        s = self.settings
        there = self._cluster_exists()
        try:
            if not there:
                self._remove_guard()  # one that has struck stays behind, with a date that is over
            self._guard(time.time() + 3600 * s.max_hours)
            capacity = {"on-demand": "--on-demand", "spot": "--spot", "reserved": f"--reservation={s.reservation}"}
            flags = [self._type, f"--num-slices={s.slices}", capacity[s.capacity], "--enable-gcsfuse-csi-driver"]
            create = ["xpk", "cluster", "create", *self._xpk, *flags, "--enable-workload-identity", "--quiet"]
            self.shell.must(create, f"creating the cluster {s.cluster}", limit=LONG)
            mount = ["--type=gcsfuse", f"--bucket={s.bucket}", f"--mount-point={MOUNT}", "--readonly=false"]
            attach = ["xpk", "storage", "attach", s.name, *self._xpk, *mount, "--auto-mount=false", "--quiet"]
            self.shell.must(attach, f"mounting the bucket {s.bucket}", limit=LONG)
        except BaseException:
            if not there:
                self.shell.say(f"up did not succeed: the cluster {s.cluster} and its guard are removed.")
                self.down()
            raise
        self.shell.say(f"The cluster {s.cluster} is there: `run` starts training.")
        return revision

    def _cluster_exists(self) -> bool:
        command = ["gcloud", "container", "clusters", "describe", self.settings.cluster, *self._location]
        result = self.shell.ask([*command, "--format=value(status)"], assume=MISSING)
        if result.status and not result.missing:
            raise CloudError(f"the cluster {self.settings.cluster} could not be described: {result.reason}.")
        return result.status == 0

    def _guard(self, deadline: float) -> None:
        """A job of Cloud Scheduler that deletes the cluster at the deadline; one that is there keeps its deadline."""
        s = self.settings
        at = time.gmtime(deadline + 60)  # the schedule knows whole minutes
        self.shell.say(f"The guard deletes the cluster {time.strftime('on %Y-%m-%d at %H:%M UTC', at)} at the latest.")
        flags = [
            *self._location,
            f"--schedule={at.tm_min} {at.tm_hour} {at.tm_mday} {at.tm_mon} *",
            "--time-zone=Etc/UTC",
            f"--uri={CLOUD_API}/projects/{s.project}/locations/{s.region}/clusters/{s.cluster}",
            "--http-method=DELETE",
            f"--oauth-service-account-email={s.service_account}",
            f"--description={deadline:.0f}",
        ]
        result = self.shell.ask(["gcloud", "scheduler", "jobs", "create", "http", f"{s.name}-guard", *flags])
        if result.status and "ALREADY_EXISTS" not in result.err:
            raise CloudError(f"the guard could not be created, so nothing else is: {result.reason}.")

    def _remove_guard(self) -> None:
        delete = ["gcloud", "scheduler", "jobs", "delete", f"{self.settings.name}-guard", *self._location, "--quiet"]
        result = self.shell.ask(delete, assume=MISSING)
        if result.status and not result.missing:
            raise CloudError(f"the guard {self.settings.name}-guard could not be deleted: {result.reason}.")

    def run(self) -> str:
        """Starts the JobSet where none of this name runs or waits; the number of the run, empty where it did."""
        s = self.settings
        for status in ("RUNNING", "QUEUED"):
            listed = self._list(status)
            if listed:
                self.shell.say(f"{s.name} is {status} already.")
                return ""
        return self._create(gate.commit(self.shell))

    def _list(self, status: str) -> bool:
        chosen = [f"--filter-by-job={self.settings.name}", f"--filter-by-status={status}"]
        listed = self.shell.must(["xpk", "workload", "list", *self._xpk, *chosen], "listing workloads")
        return bool(re.search(rf"^\W*{re.escape(self.settings.name)}\b", listed.out, re.MULTILINE))

    def _create(self, revision: str) -> str:
        s, run = self.settings, f"{time.time():.0f}"
        given = {"M1_NAME": s.name, "M1_COMMIT": revision, "M1_BUCKET": s.bucket, "M1_CONFIG": s.config, "M1_RUN": run}
        given |= {
            "M1_SET": gate.quoted(s.overrides),
            "M1_AMEND": "yes" if s.amend else "",
            "M1_PYTHON": s.python,
            "M1_BUCKET_DIR": MOUNT,
            **s.of_training,
        }
        with tempfile.TemporaryDirectory() as folder:
            code = gate.export(self.shell, revision, folder)
            flags = [
                *self._xpk,
                self._type,
                f"--num-slices={s.slices}",
                f"--base-docker-image={s.image}",
                f"--script-dir={code}",
                f"--storage={s.name}",
                f"--max-restarts={RESTARTS}",
                "--restart-on-exit-codes=75",
                f"--termination-grace-period-seconds={GRACE_SECONDS}",
                *(f"--env={key}={value}" for key, value in given.items()),
                "--command=bash launch/remote/gke.sh",
            ]
            create = ["xpk", "workload", "create", f"--workload={s.name}", *flags]
            self.shell.must(create, f"creating the workload {s.name}", limit=LONG)
        self.shell.say("The JobSet is there; it needs this terminal no longer.")
        return run

    def resume(self) -> str:
        """Deletes what is left of the JobSet and starts it again; it continues from the newest checkpoint."""
        self._delete_workload()
        return self._create(gate.commit(self.shell))

    def _delete_workload(self) -> None:
        delete = ["xpk", "workload", "delete", f"--workload={self.settings.name}", *self._xpk, "--force"]
        self.shell.must(delete, f"deleting the workload {self.settings.name}", limit=LONG)

    def watch(self, run: str) -> None:
        """Looks on until training ends. Raises CloudError where it failed or the cluster is gone."""
        s = self.settings
        while True:
            reports = bucket.reports(s, self.shell)
            if self.shell.dry_run:
                return
            mine = hosts.of_run(reports, run)
            if any(report.state == "failed" for report in mine.values()):
                raise CloudError(bucket.explain(s, self.shell, reports))
            if len(mine) == len(s.hosts) and all(report.state == "finished" for report in mine.values()):
                files = bucket.collect(s, self.shell, "")
                self.shell.say(f"Training finished on all hosts; logs in {files[0].parent}.")
                return
            if not self._cluster_exists():
                raise CloudError(f"the cluster {s.cluster} is gone: deleted by its guard (M1_MAX_HOURS) or by somebody")
            self.shell.sleep(s.poll_seconds)

    def status(self) -> None:
        """Prints what xpk knows of the workload and what every host last said."""
        listed = self.shell.must(
            ["xpk", "workload", "list", *self._xpk, f"--filter-by-job={self.settings.name}"], "listing workloads"
        )
        self.shell.say(listed.out.rstrip() or f"{self.settings.name}: nothing is listed.")
        show_reports(self.settings, self.shell)

    def down(self) -> None:
        """Deletes the cluster with everything in it, then its guard, and returns when both are gone."""
        s = self.settings
        if self._cluster_exists() or self.shell.dry_run:
            delete = ["xpk", "cluster", "delete", *self._xpk, "--force"]
            self.shell.must(delete, f"deleting the cluster {s.cluster}", limit=LONG)
            if self._cluster_exists():
                raise CloudError(f"the cluster {s.cluster} is still there: its guard is left too")
        self._remove_guard()
        self.shell.say(f"Nothing of {s.name} is left in {s.region}; {s.folder} is kept.")
