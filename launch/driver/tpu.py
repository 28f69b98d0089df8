"""A run on TPU VMs: one queued resource of one slice or several, reached by ssh."""

import dataclasses
import json
import os
import time
from pathlib import Path

from driver.settings import CloudError, LaunchError, Settings
from driver.shell import MISSING, Result, Shell

GUARD = Path(__file__).parents[1] / "remote" / "guard.sh"
TPUS = ("gcloud", "compute", "tpus")
WAITING = ("STATE_UNSPECIFIED", "CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
DELETION_SECONDS = 1800.0
# An external host that does not answer is given up by ssh after this, not after the system's two minutes.
CONNECT_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Found:
    """A queued resource as the service describes it."""

    state: str
    """ACTIVE and so on: cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources."""
    reason: str
    deadline: float
    """When the guard deletes it, seconds since 1970; 0 where it is not ours."""
    owner: str
    """Which `up` created it."""
    commit: str


class QueuedResource:
    """Creates, finds, reaches and deletes the queued resource of a launch; every call may be repeated."""

    def __init__(self, settings: Settings, shell: Shell) -> None:
        """Nothing is asked of the cloud yet."""
        self._settings, self._shell = settings, shell
        self._where = (f"--project={settings.project}", f"--zone={settings.zone}")

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs, one a slice."""
        name, slices = self._settings.name, self._settings.slices
        return [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]

    def find(self, assume: str = "") -> Found | None:
        """What is there; None only where the service says that nothing is. Raises CloudError on any other error."""
        commands = (*TPUS, "queued-resources", "describe", self._settings.name, *self._where, "--format=json")
        assumed = Result(0, json.dumps({"state": {"state": assume}})) if assume else MISSING
        result = self._shell.ask(commands, assume=assumed)
        if result.missing:
            return None
        if result.status:
            raise CloudError(f"the queued resource {self._settings.name} could not be described: {result.reason}.")
        told = json.loads(result.out)
        node = (told.get("tpu", {}).get("nodeSpec") or [{}])[0].get("node", {})
        metadata, state = node.get("metadata", {}), told["state"]
        reason = state.get("failedData", {}).get("error", {}).get("message", "")
        return Found(
            state["state"],
            reason,
            float(metadata.get("m1-deadline", 0)),
            metadata.get("m1-owner", ""),
            metadata.get("m1-commit", ""),
        )

    def create(self, deadline: float, owner: str, commit: str) -> None:
        """Asks for the slices; the guard in their start-up script deletes them at `deadline`, whoever looks on.

        Raises CloudError where the service refuses (quota, permission, an unknown name).
        """
        s = self._settings
        nodes = [f"--node-id={s.name}"] if s.slices == 1 else [f"--node-count={s.slices}", f"--node-prefix={s.name}"]
        metadata = {"m1-name": s.name, "m1-project": s.project, "m1-zone": s.zone, "m1-commit": commit}
        metadata |= {"m1-deadline": f"{deadline:.0f}", "m1-owner": owner}
        flags = [
            *self._where,
            f"--accelerator-type={s.accelerator}",
            f"--runtime-version={s.runtime}",
            *nodes,
            *{"on-demand": [], "spot": ["--spot"], "reserved": ["--reserved"]}[s.capacity],
            f"--service-account={s.service_account}",
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
            *([f"--subnetwork={s.subnetwork}"] if s.subnetwork else []),
            *(["--internal-ips"] if s.internal_ips else []),
            "--metadata=" + ",".join(f"{key}={value}" for key, value in metadata.items()),
            f"--metadata-from-file=startup-script={os.path.relpath(GUARD)}",
        ]
        result = self._shell.ask((*TPUS, "queued-resources", "create", s.name, *flags))
        if result.status == 0:
            return
        # A call that was cut off may have reached the service all the same; its repetition then finds ours there.
        found = None if self._shell.dry_run else self.find()
        if found is None or found.owner != owner:
            raise CloudError(f"creating the queued resource {s.name} failed: {result.reason}.")

    def wait(self, seconds: float) -> None:
        """Waits until the slices are there. Raises CloudError where they do not come or go again."""
        until, told = time.monotonic() + seconds, ""
        while True:
            found = self.find(assume="ACTIVE")
            if found is None:
                raise CloudError(f"the queued resource {self._settings.name} vanished while it was waited for.")
            if found.state == "ACTIVE":
                return
            if found.state not in WAITING:
                reason = f": {found.reason.rstrip('.')}" if found.reason else ""
                raise CloudError(f"the queued resource {self._settings.name} is {found.state}{reason}.")
            if found.state != told:
                self._shell.say(f"{self._settings.name} is {found.state}; waiting.")
                told = found.state
            if time.monotonic() > until:
                raise CloudError(
                    f"the queued resource {self._settings.name} was still {found.state} after {seconds / 3600:.2g} h "
                    f"(M1_WAIT_HOURS): try another zone, capacity or topology."
                )
            self._shell.sleep(self._settings.poll_seconds)

    def delete(self) -> None:
        """Deletes the queued resource and its nodes, and returns when none of them is there. May be repeated.

        Raises CloudError naming what is left.
        """
        name = self._settings.name
        until, ordered = time.monotonic() + DELETION_SECONDS, False
        while True:
            found = self.find(assume="" if ordered else "ACTIVE")
            if found is None:
                break
            if found.state != "DELETING" or not ordered:
                result = self._shell.ask(
                    (*TPUS, "queued-resources", "delete", name, *self._where, "--force", "--async", "--quiet")
                )
                ordered = ordered or result.status == 0
                if result.status and not result.missing:
                    self._shell.say(f"deleting {name} was refused ({result.reason}); asking again.")
            if time.monotonic() > until:
                raise CloudError(f"the queued resource {name} is still {found.state}: delete it in the console.")
            self._shell.sleep(min(self._settings.poll_seconds, 15))
        # A list may be partial; a node that is asked for by name is there or not.
        left = [node for node in self.nodes if not self._describe(node).missing]
        if left:
            raise CloudError(f"nodes of {name} are still there: {', '.join(left)}: delete them in the console.")

    def _describe(self, node: str) -> Result:
        command = (*TPUS, "tpu-vm", "describe", node, *self._where, "--format=value(state)")
        return self._shell.ask(command, assume=MISSING)

    def everywhere(self, script: str, limit: float) -> Result:
        """Runs a line of shell on every host at once; what the hosts print comes mixed, so each names itself.

        gcloud's own status is not enough to go by: it leaves out slices that it could not prepare, and keeps one
        status a worker number, not one a host.
        """
        routing = ["--tunnel-through-iap"] if self._settings.internal_ips else []
        flags = [
            *self._where,
            "--node=all",
            "--worker=all",
            "--batch-size=all",
            *routing,
            f"--ssh-flag=-oConnectTimeout={CONNECT_SECONDS}",
            "--quiet",
            f"--command={script}",
        ]
        command = (*TPUS, "queued-resources", "ssh", self._settings.name, *flags)
        return self._shell.ask(command, limit=limit, again=False)


def refuse_foreign(found: Found, name: str) -> None:
    """Raises LaunchError where a queued resource of this name was not made by m1launch."""
    if not found.owner:
        raise LaunchError(f"there is a queued resource {name} that m1launch did not create: choose another M1_NAME.")
