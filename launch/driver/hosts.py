"""What hosts say of themselves: one line each, over ssh or from the bucket."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

LINE = re.compile(r"^m1-host (.+)$", re.MULTILINE)
ENDED = ("finished", "failed", "stopped")


@dataclasses.dataclass(frozen=True)
class Report:
    """One host's line; `host` is slice-worker."""

    host: str
    state: str
    """ready (set up), running, finished, failed, stopped (another host failed, or it was asked to)."""
    run: str
    """Which `run` started it."""
    attempt: int
    status: int
    """Exit status of `m1 train`, of the newest attempt that ended."""
    at: float
    """When the line was written, seconds since 1970 by the host's clock."""
    ended: float
    """When the newest attempt ended; 0 while none has."""


def parse(text: str) -> dict[str, Report]:
    """The newest report of each host in a text that may hold anything else."""
    found: dict[str, Report] = {}
    for match in LINE.finditer(text):
        words = dict(word.split("=", 1) for word in match[1].split() if "=" in word)
        try:
            report = Report(
                words["host"],
                words["state"],
                words.get("run", ""),
                int(words.get("attempt") or 0),
                int(words.get("status") or 0),
                float(words["at"]),
                float(words.get("ended") or 0),
            )
        except (KeyError, ValueError):
            continue  # a line that was cut off: its host counts as silent
        if report.host not in found or found[report.host].at <= report.at:
            found[report.host] = report
    return found


def of_run(reports: dict[str, Report], run: str) -> dict[str, Report]:
    """Reports of one start of training; of the newest where its number is not known."""
    wanted = run or max((report.run for report in reports.values()), default="")
    return {host: report for host, report in reports.items() if report.run == wanted}


def first_failed(reports: Iterable[Report]) -> Report | None:
    """The host whose failure came first, by the hosts' clocks (`m1 doctor` measures how far those differ)."""
    failed = [report for report in reports if report.state == "failed"]
    return min(failed, key=lambda report: report.ended, default=None)


def rank(host: str, hosts: Sequence[str]) -> int:
    """A host's rank among all."""
    return hosts.index(host)


def names(hosts: Sequence[str]) -> str:
    """Hosts for a sentence: "host 0-3" or "hosts 0-3, 1-0 (and 5 more)"."""
    shown = ", ".join(hosts[:6])
    more = f" (and {len(hosts) - 6} more)" if len(hosts) > 6 else ""
    return f"host{'s' if len(hosts) > 1 else ''} {shown}{more}"
