"""One environment file names a whole launch; here it is read, checked and put into Google's terms."""

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

CAPACITIES = ("on-demand", "spot", "reserved")
PLATFORMS = ("tpu-vm", "gke")
VERBS = ("train", "sft", "prefer")


class LaunchError(Exception):
    """What the reader can put right, as one sentence; exit status 2."""


class CloudError(Exception):
    """What went wrong in the cloud or on a host, as one sentence; exit status 1."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation as Cloud TPU and GKE name it (cloud.google.com/tpu/docs/runtimes, …/tpu/docs/v5p and so on)."""

    accelerator: str
    """Prefix of --accelerator-type and of xpk's --tpu-type."""
    cores: int
    """TensorCores a chip that the number behind the prefix counts."""
    runtime: str
    """Software of the TPU VM; empty where the Cloud TPU API does not offer the generation."""
    dimensions: int
    one_host: int
    """Most chips of a slice that has a single TPU VM; a larger slice has four chips a VM."""


GENERATIONS = {
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", 2, 8),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", 3, 4),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", 2, 8),
    "tpu7x": Generation("tpu7x", 2, "", 3, 4),
}

REQUIRED = ("M1_NAME", "M1_PROJECT", "M1_ZONE", "M1_TOPOLOGY", "M1_BUCKET", "M1_CONFIG", "M1_SERVICE_ACCOUNT")
DEFAULTS = {
    "M1_PLATFORM": "tpu-vm",
    "M1_SLICES": "1",
    "M1_CAPACITY": "on-demand",
    "M1_MAX_HOURS": "24",
    "M1_SET": "",
    "M1_AMEND": "no",
    "M1_VERB": "train",
    "M1_INITIAL": "",
    "M1_CONVERSATIONS": "",
    "M1_RUNTIME": "",
    "M1_SUBNETWORK": "",
    "M1_INTERNAL_IPS": "no",
    "M1_RESERVATION": "",
    "M1_CLUSTER": "",
    "M1_IMAGE": "python:3.13",
    "M1_PYTHON": "",
    "M1_WAIT_HOURS": "24",
    "M1_POLL_SECONDS": "60",
    "M1_STALE_SECONDS": "300",
    "M1_SSH_SECONDS": "1800",
    "M1_RECREATIONS": "50",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """An environment file, checked."""

    name: str
    platform: str
    project: str
    zone: str
    topology: str
    slices: int
    capacity: str
    bucket: str
    """Name of the bucket, without gs://."""
    config: str
    overrides: tuple[str, ...]
    amend: bool
    """Accepts settings that differ from those of the run's checkpoint."""
    verb: str
    """train, or sft: one host prepares conversations before all train."""
    initial: str
    """Folder, inside the run's in the bucket, of the model that the run starts from."""
    conversations: str
    """The same of the conversations that sft prepares."""
    service_account: str
    max_hours: float
    runtime: str
    subnetwork: str
    internal_ips: bool
    reservation: str
    cluster: str
    image: str
    python: str
    """An interpreter on the hosts that has every dependency; empty: a virtual environment is made."""
    wait_hours: float
    poll_seconds: float
    stale_seconds: float
    ssh_seconds: float
    recreations: int

    @property
    def generation(self) -> Generation:
        """The TPU generation of the topology."""
        return GENERATIONS[self.topology.partition(":")[0]]

    @property
    def shape(self) -> str:
        """Chips along each dimension, such as 4x8x8."""
        return self.topology.partition(":")[2]

    @property
    def chips(self) -> int:
        """Chips of one slice."""
        return math.prod(int(size) for size in self.shape.split("x"))

    @property
    def accelerator(self) -> str:
        """What --accelerator-type takes."""
        return f"{self.generation.accelerator}-{self.chips * self.generation.cores}"

    @property
    def hosts(self) -> list[str]:
        """Names slice-worker of all hosts, in rank order."""
        # xpk's nodes have four chips each; a TPU VM of a small v5e or v6e slice has all eight.
        one = self.generation.one_host if self.platform == "tpu-vm" else 4
        workers = 1 if self.chips <= one else self.chips // 4
        return [f"{number}-{worker}" for number in range(self.slices) for worker in range(workers)]

    @property
    def folder(self) -> str:
        """Where everything of the run lies in the bucket."""
        return f"gs://{self.bucket}/{self.name}"

    @property
    def of_training(self) -> dict[str, str]:
        """What the hosts' scripts read of verb and inputs, by variable; without those that are at their default."""
        found = {"M1_INITIAL": self.initial, "M1_CONVERSATIONS": self.conversations}
        found["M1_VERB"] = "" if self.verb == "train" else self.verb
        return {key: value for key, value in found.items() if value}

    @property
    def region(self) -> str:
        """The zone's region."""
        return self.zone.rpartition("-")[0]


def read(path: str, overrides: Mapping[str, str]) -> Settings:
    """Reads KEY=VALUE lines (shell quoting, # comments); `overrides` win. Raises LaunchError naming file and key."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LaunchError(
            f"{path} cannot be read ({error.strerror}): copy launch/env.example and fill it in."
        ) from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise LaunchError(f"{path}, line {number}: {error}: write KEY=VALUE, with quotes round spaces.") from error
        if not words:
            continue
        key, equals, value = words[0].partition("=")
        if not equals or len(words) > 1 or key not in (*REQUIRED, *DEFAULTS):
            raise LaunchError(f"{path}, line {number}: {line.strip()!r} is no KEY=VALUE of launch/env.example.")
        found[key] = value
    found = {**DEFAULTS, **found, **overrides}
    for key in REQUIRED:
        if not found.get(key):
            raise LaunchError(f"{path}: {key} is missing or empty: see launch/env.example.")
    return _checked(path, found)


SHAPES = {2: "4x4", 3: "4x8x8"}
"""A shape for each number of dimensions, as an example."""


def _generation(path: str, topology: str) -> str:
    """The generation of a topology such as v5p:4x8x8. Raises LaunchError that says what is supported."""
    name, _, shape = topology.partition(":")
    written = f"{path}: M1_TOPOLOGY={topology}"
    if re.match(r"v4\b", topology):
        raise LaunchError(
            f"{written}: v4 is not rented by m1launch, which supports v5e and v6e (such as v5e:4x4) and v5p and tpu7x "
            f"(such as v5p:4x4x4): on v4 hosts run `m1 train` yourself, see docs/training.md."
        )
    # Names of Google's own, whose number counts cores or chips and says no shape.
    google = next((known for known, it in GENERATIONS.items() if topology.startswith(f"{it.accelerator}-")), None)
    if google or (name in GENERATIONS and not shape):
        known = google or name
        dimensions = GENERATIONS[known].dimensions
        raise LaunchError(
            f"{written} must be {known} and a shape of {dimensions} numbers, such as {known}:{SHAPES[dimensions]}."
        )
    if name not in GENERATIONS:
        raise LaunchError(
            f"{written} must be one of {', '.join(GENERATIONS)} and a shape, such as v5p:4x8x8 or v5e:4x4."
        )
    sizes = shape.split("x")
    if len(sizes) != GENERATIONS[name].dimensions or not all(re.fullmatch(r"[1-9]\d*", size) for size in sizes):
        raise LaunchError(f"{written} must be {name}: and {GENERATIONS[name].dimensions} numbers joined by x.")
    return name


def _checked(path: str, found: Mapping[str, str]) -> Settings:
    def refuse(key: str, want: str) -> LaunchError:
        return LaunchError(f"{path}: {key}={found[key]} must be {want}.")

    def number(key: str, least: float) -> float:
        try:
            value = float(found[key])
        except ValueError:
            raise refuse(key, "a number") from None
        if not least <= value < math.inf:
            raise refuse(key, f"at least {least:g}")
        return value

    # xpk's own limit, the stricter of the two platforms: 40 characters, of which the node number takes some.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?", found["M1_NAME"]):
        raise refuse("M1_NAME", "at most 32 lower-case letters, digits and hyphens, beginning with a letter")
    if found["M1_PLATFORM"] not in PLATFORMS:
        raise refuse("M1_PLATFORM", " or ".join(PLATFORMS))
    if found["M1_CAPACITY"] not in CAPACITIES:
        raise refuse("M1_CAPACITY", " or ".join(CAPACITIES))
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", found["M1_ZONE"]):
        raise refuse("M1_ZONE", "a zone such as us-east5-a")
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+/?", found["M1_BUCKET"]):
        raise refuse("M1_BUCKET", "gs://NAME of a whole bucket")
    if found["M1_VERB"] not in VERBS:
        raise refuse("M1_VERB", " or ".join(VERBS))
    for name in ("M1_INITIAL", "M1_CONVERSATIONS"):
        if found[name] and (found[name].startswith("/") or ".." in found[name].split("/") or "://" in found[name]):
            raise refuse(name, f"the name of a folder inside gs://BUCKET/{found['M1_NAME']}")
    if found["M1_CONVERSATIONS"] and found["M1_VERB"] == "train":
        raise LaunchError(f"{path}: M1_CONVERSATIONS is read by sft and prefer only: set M1_VERB=sft, or prefer.")
    for name in ("M1_INTERNAL_IPS", "M1_AMEND"):
        if found[name] not in ("yes", "no"):
            raise refuse(name, "yes or no")
    name = _generation(path, found["M1_TOPOLOGY"])
    if found["M1_PLATFORM"] == "tpu-vm" and not GENERATIONS[name].runtime:
        raise LaunchError(f"{path}: {name} is offered on GKE only: set M1_PLATFORM=gke.")
    if found["M1_PLATFORM"] == "gke" and found["M1_CAPACITY"] == "reserved" and not found["M1_RESERVATION"]:
        raise LaunchError(f"{path}: M1_RESERVATION must name the reservation that GKE takes its nodes from.")
    slices = number("M1_SLICES", 1)
    try:
        overrides = tuple(shlex.split(found["M1_SET"]))
    except ValueError as error:
        raise LaunchError(f"{path}: M1_SET: {error}: write KEY=VALUE words separated by spaces.") from error
    if any("=" not in word for word in overrides):
        raise refuse("M1_SET", "KEY=VALUE words separated by spaces")
    return Settings(
        name=found["M1_NAME"],
        platform=found["M1_PLATFORM"],
        project=found["M1_PROJECT"],
        zone=found["M1_ZONE"],
        topology=found["M1_TOPOLOGY"],
        slices=int(slices),
        capacity=found["M1_CAPACITY"],
        bucket=found["M1_BUCKET"].removeprefix("gs://").rstrip("/"),
        config=found["M1_CONFIG"],
        overrides=overrides,
        amend=found["M1_AMEND"] == "yes",
        verb=found["M1_VERB"],
        initial=found["M1_INITIAL"],
        conversations=found["M1_CONVERSATIONS"],
        service_account=found["M1_SERVICE_ACCOUNT"],
        # A minute: enough for a guard to be tested by hand, and for a slip of the keyboard to be noticed.
        max_hours=number("M1_MAX_HOURS", 0.001),
        runtime=found["M1_RUNTIME"] or GENERATIONS[name].runtime,
        subnetwork=found["M1_SUBNETWORK"],
        internal_ips=found["M1_INTERNAL_IPS"] == "yes",
        reservation=found["M1_RESERVATION"],
        cluster=found["M1_CLUSTER"] or f"{found['M1_NAME']}-cluster",
        image=found["M1_IMAGE"],
        python=found["M1_PYTHON"],
        wait_hours=number("M1_WAIT_HOURS", 0),
        poll_seconds=number("M1_POLL_SECONDS", 0.05),
        stale_seconds=number("M1_STALE_SECONDS", 1),
        ssh_seconds=number("M1_SSH_SECONDS", 1),
        recreations=int(number("M1_RECREATIONS", 0)),
    )
