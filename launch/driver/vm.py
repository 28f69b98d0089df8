"""The life of a run on TPU VMs: up, run, watch, resume, down."""

import shlex
import time
import uuid

from driver import bucket, gate, hosts
from driver.hosts import Report
from driver.settings import CloudError, LaunchError, Settings
from driver.shell import Result, Shell
from driver.tpu import QueuedResource, refuse_foreign

SETUP_ATTEMPTS = 3
"""Tries of a host's set-up: a new VM may take a while to know the ssh key."""


class VmLaunch:
    """Every verb may be repeated, from any machine: what is known of a launch lies in the cloud."""

    def __init__(self, settings: Settings, shell: Shell) -> None:
        """Nothing is asked of the cloud yet."""
        self.settings, self.shell = settings, shell
        self.resource = QueuedResource(settings, shell)

    def up(self, *, revision: str) -> str:
        """Creates what is not there, waits, sets up every host and measures it; the commit that is now there.

        A failure removes what this call created, and says so; what was there before is left. Raises CloudError.
        """
        name, found = self.settings.name, self.resource.find()
        if found:
            refuse_foreign(found, name)
        gate.upload(self.settings, self.shell, revision)
        alive = found is not None and found.state not in ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
        try:
            if not alive:
                if found:
                    self.shell.say(f"{name} is {found.state}: it is deleted and asked for again.")
                    self.resource.delete()
                self._create(time.time() + 3600 * self.settings.max_hours, revision)
            self._wait_and_set_up(revision)
        except BaseException:
            if not alive:
                self.shell.say(f"up did not succeed: the queued resource {name} that it created is removed.")
                self.resource.delete()
                self.shell.say(f"{name} is gone; nothing of it is left but {self.settings.folder}.")
            else:
                self.shell.say(f"up did not succeed; {name} was there before and is left: `down` removes it.")
            raise
        return revision

    def _create(self, deadline: float, revision: str) -> None:
        s = self.settings
        what = f"{s.slices} x {s.accelerator} ({s.topology}), {s.capacity}, in {s.zone}"
        self.shell.say(f"Asking for {what}; the guard deletes it {_clock(deadline)} at the latest.")
        self.resource.create(deadline, uuid.uuid4().hex[:12], revision)

    def _wait_and_set_up(self, revision: str) -> None:
        self.resource.wait(3600 * self.settings.wait_hours)
        hosts_of = self.settings.hosts
        self.shell.say(f"{self.settings.name} is ACTIVE; setting up {len(hosts_of)} host(s) with {revision[:12]}.")
        self._setup(revision)
        self.shell.say("Measuring every host with m1 doctor.")
        result = self._on_hosts(revision, "doctor")
        found = hosts.parse(result.out)
        bad = [host for host in hosts_of if host not in found or found[host].state != "ready"]
        if bad and not self.shell.dry_run:
            self.shell.say("\n".join(line for line in result.out.splitlines() if line.partition(":")[0] in bad))
            raise CloudError(f"m1 doctor found {hosts.names(bad)} broken or had no answer")
        self.shell.say(f"All {len(hosts_of)} host(s) are ready: `run` starts training.")

    def _setup(self, revision: str) -> None:
        s = self.settings
        given = {"M1_NAME": s.name, "M1_COMMIT": revision, "M1_BUCKET": s.bucket, "M1_CONFIG": s.config}
        given |= {"M1_SET": gate.quoted(s.overrides), "M1_PYTHON": s.python, "M1_AMEND": "yes" if s.amend else ""}
        given |= s.of_training
        exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in given.items() if value)
        address = f"{s.folder}/launch/code/{revision}.tar.gz"
        script = (
            f"export {exports}; code=${{M1_ROOT:-$HOME/m1}}/code/{revision}; "
            f'if [ ! -e "$code/.whole" ]; then mkdir -p "$code" && gcloud storage cat {address} '
            f'| tar -xz -C "$code" && touch "$code/.whole"; fi; bash "$code/launch/remote/setup.sh"'
        )
        for attempt in range(SETUP_ATTEMPTS):
            result = self.resource.everywhere(script, s.ssh_seconds)
            found = hosts.parse(result.out)
            silent = [host for host in s.hosts if host not in found]
            broken = [host for host in s.hosts if host in found and found[host].state != "ready"]
            if self.shell.dry_run or not silent + broken:
                return
            if broken:
                self.shell.say(result.err.strip())
                raise CloudError(f"setting up {hosts.names(broken)} failed; what they said is above")
            if attempt + 1 < SETUP_ATTEMPTS:
                self.shell.say(f"No answer from {hosts.names(silent)} of {len(s.hosts)}: asking again.")
                self.shell.sleep(self.shell.pause)
        raise CloudError(
            f"{hosts.names(silent)} of {len(s.hosts)} cannot be reached ({result.reason}): see docs/launch.md"
        )

    def _on_hosts(self, revision: str, what: str) -> Result:
        script = f'bash "${{M1_ROOT:-$HOME/m1}}/code/{revision}/launch/remote/host.sh" {what}'
        return self.resource.everywhere(script, self.settings.ssh_seconds)

    def run(self) -> str:
        """Starts training on every host where it does not run already; the number of the run."""
        name, found = self.settings.name, self.resource.find(assume="ACTIVE")
        if found is None:
            raise LaunchError(f"there is no {name} in {self.settings.zone}: `m1launch up` first.")
        if found.state != "ACTIVE":
            raise LaunchError(f"{name} is {found.state}: `m1launch resume` brings it back.")
        return self._start(found.commit or gate.commit(self.shell))

    def _start(self, revision: str) -> str:
        run = f"{time.time():.0f}"
        found = hosts.parse(self._on_hosts(revision, f"start {run}").out)
        silent = [host for host in self.settings.hosts if host not in found]
        if silent and not self.shell.dry_run:
            raise CloudError(f"training could not be started on {hosts.names(silent)} of {len(self.settings.hosts)}")
        self.shell.say(f"Training runs on {len(self.settings.hosts)} host(s); it needs this terminal no longer.")
        # Supervisors that ran before keep the number that they were started with.
        return max((report.run for report in found.values()), default=run)

    def resume(self) -> str:
        """Brings back what was preempted, at the commit it ran, and starts training; the number of the run."""
        found = self.resource.find()
        revision = found.commit if found and found.commit else gate.commit(self.shell)
        self.up(revision=revision)
        return self._start(revision)

    def stop(self, revision: str) -> None:
        """Lets training save and end on every host that can be reached."""
        self._on_hosts(revision, "stop")

    def down(self) -> None:
        """Deletes slices and queued resource, and returns when they are gone."""
        found = None if self.shell.dry_run else self.resource.find()
        if found:
            refuse_foreign(found, self.settings.name)
        self.resource.delete()
        self.shell.say(
            f"Nothing of {self.settings.name} is left in {self.settings.zone}; {self.settings.folder} is kept."
        )

    def watch(self, run: str) -> None:
        """Looks on until training ends; brings the slices back where they are preempted or fall silent.

        Raises CloudError where training failed (after stopping it everywhere), the guard struck, or nothing can
        be had any more.
        """
        found = self.resource.find(assume="ACTIVE")
        deadline, revision = (found.deadline, found.commit) if found else (0.0, "")
        changed: dict[str, tuple[float, float]] = {}
        recreated = 0
        while True:
            found = self.resource.find(assume="ACTIVE")
            reports = bucket.reports(self.settings, self.shell)
            mine = hosts.of_run(reports, run)
            if self.shell.dry_run:
                return
            if any(report.state == "failed" for report in mine.values()):
                if found and found.state == "ACTIVE":
                    self.stop(revision)
                raise CloudError(bucket.explain(self.settings, self.shell, bucket.reports(self.settings, self.shell)))
            if len(mine) == len(self.settings.hosts) and all(r.state == "finished" for r in mine.values()):
                files = bucket.collect(self.settings, self.shell, "")
                self.shell.say(f"Training finished on all hosts; logs in {files[0].parent}.")
                return
            if len(mine) == len(self.settings.hosts) and all(r.state in hosts.ENDED for r in mine.values()):
                raise CloudError(f"training of {self.settings.name} was stopped; `resume` goes on from its checkpoint")
            if found is None:
                why = "the budget guard (M1_MAX_HOURS)" if time.time() >= deadline else "somebody"
                raise CloudError(f"{why} deleted {self.settings.name}; `resume` goes on from its last checkpoint")
            lost = self._lost(found.state, mine, changed)
            if lost:
                recreated += 1
                if recreated > self.settings.recreations:
                    self.down()
                    raise CloudError(f"{lost}, {recreated} times (M1_RECREATIONS): it is given up")
                self.shell.say(f"{lost}: bringing {self.settings.name} back.")
                run = self._recreate(deadline, revision)
                changed.clear()
            self.shell.sleep(self.settings.poll_seconds)

    def _lost(self, state: str, mine: dict[str, Report], changed: dict[str, tuple[float, float]]) -> str:
        """Why the slices must be made anew; empty where they need not. `changed` keeps when each host last spoke."""
        if state != "ACTIVE":
            return f"{self.settings.name} was preempted ({state})"
        now = time.monotonic()
        for host in self.settings.hosts:
            at = mine[host].at if host in mine else 0.0
            if host not in changed or changed[host][0] != at:
                changed[host] = (at, now)
        running = [host for host in self.settings.hosts if host not in mine or mine[host].state == "running"]
        silent = [host for host in running if now - changed[host][1] > self.settings.stale_seconds]
        return f"{hosts.names(silent)} said nothing for {self.settings.stale_seconds:g} s" if silent else ""

    def _recreate(self, deadline: float, revision: str) -> str:
        """Deletes and creates again under the same deadline, until it succeeds; the number of the new run."""
        while True:
            self.resource.delete()
            if time.time() >= deadline:
                raise CloudError(f"the deadline of {self.settings.name} (M1_MAX_HOURS) has passed; nothing is left")
            try:
                self._create(deadline, revision)
                self._wait_and_set_up(revision)
                return self._start(revision)
            except CloudError as error:
                self.shell.say(f"{error}; trying again.")
                self.shell.sleep(self.settings.poll_seconds)
            except BaseException:
                self.resource.delete()
                raise

    def status(self) -> None:
        """Prints what is there and what every host last said."""
        found = self.resource.find(assume="ACTIVE")
        s = self.settings
        if found is None:
            self.shell.say(f"{s.name}: nothing is there, nothing is paid for.")
        else:
            until = f"; the guard deletes it {_clock(found.deadline)}" if found.deadline else ""
            why = f" ({found.reason})" if found.reason else ""
            self.shell.say(f"{s.name}: {found.state}{why}, {s.slices} x {s.topology}, {s.capacity}{until}.")
        show_reports(s, self.shell)


def show_reports(settings: Settings, shell: Shell) -> None:
    """Prints a line for every host, also for those that never spoke."""
    found = bucket.reports(settings, shell)
    for host in [] if shell.dry_run else settings.hosts:
        if host in found:
            report = found[host]
            ago = max(0.0, time.time() - report.at)
            shell.say(
                f"  host {host}: {report.state}, attempt {report.attempt}, status {report.status}, {ago:.0f} s ago"
            )
        else:
            shell.say(f"  host {host}: never spoke")


def _clock(seconds: float) -> str:
    return time.strftime("on %Y-%m-%d at %H:%M UTC", time.gmtime(seconds))
