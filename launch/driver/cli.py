"""The command: m1launch VERB --env FILE."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from driver import bucket, gate
from driver.gke import GkeLaunch
from driver.settings import CloudError, LaunchError, Settings, read
from driver.shell import Shell
from driver.vm import VmLaunch

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
VERBS = {
    "up": "create the slices, wait for them, set up every host and measure it; remove what it created if that fails",
    "run": "start training; with --watch bring preempted slices back until it ends",
    "status": "what is there, until when, and what every host last said",
    "logs": "copy the logs of all hosts to this machine and show their ends",
    "resume": "bring back what was preempted or stopped, and go on from the newest checkpoint",
    "down": "delete the slices and return when nothing is left",
}


class SignalledError(BaseException):
    """A signal: what was being created is removed on the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit status: 0, 1 for a failure, 2 for a user's mistake, 130 for a signal."""
    args = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    shell = Shell(args.dry_run)
    try:
        overrides = {"M1_MAX_HOURS": args.max_hours} if getattr(args, "max_hours", None) else {}
        settings = read(args.env, overrides)
        _do(args, settings, shell)
    except (LaunchError, CloudError) as error:
        return _end(f"m1launch: {str(error).rstrip('.')}.", USER_ERROR if isinstance(error, LaunchError) else FAILURE)
    except SignalledError as error:
        return _end(f"m1launch: interrupted ({error}); the same command continues.", INTERRUPTED)
    return 0


def _do(args: argparse.Namespace, settings: Settings, shell: Shell) -> None:
    launch = (VmLaunch if settings.platform == "tpu-vm" else GkeLaunch)(settings, shell)
    if args.verb == "up":
        revision = gate.commit(shell)
        if not args.skip_plan:
            gate.plan(settings, shell, args.even_if_it_does_not_fit)
        launch.up(revision=revision)
    elif args.verb in ("run", "resume"):
        started = launch.run() if args.verb == "run" else launch.resume()
        if args.watch or args.then_down:
            _watch(launch, started, args.then_down)
    elif args.verb == "status":
        launch.status()
    elif args.verb == "logs":
        bucket.show_last(settings, shell, bucket.collect(settings, shell, args.to), args.last)
    else:
        launch.down()


def _watch(launch: VmLaunch | GkeLaunch, run: str, then_down: bool) -> None:
    try:
        launch.watch(run)
    except CloudError:
        if then_down:
            launch.down()
        raise
    if then_down:
        launch.down()


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the removal
    raise SignalledError(signal.Signals(number).name)


def _end(message: str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return status


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="m1launch",
        description="From a Google project to the first step of `m1 train`, and back to zero cost.",
        epilog="docs/launch.md walks through a whole life. Start with: m1launch up --env my.env --dry-run",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        default = os.environ.get("M1_ENV", "launch/env")
        sub.add_argument("--env", default=default, metavar="FILE", help=f"environment file (default: {default})")
        sub.add_argument("--dry-run", action="store_true", help="print every command instead of running it")
        if name in ("up", "resume"):
            sub.add_argument("--max-hours", metavar="H", help="the guard deletes after H hours (default: M1_MAX_HOURS)")
        if name == "up":
            sub.add_argument("--skip-plan", action="store_true", help="do not ask m1 plan whether the config fits")
            sub.add_argument("--even-if-it-does-not-fit", action="store_true", help="rent whatever m1 plan says")
        if name in ("run", "resume"):
            sub.add_argument("--watch", action="store_true", help="look on, and bring preempted slices back")
            sub.add_argument("--then-down", action="store_true", help="watch, and delete the slices when training ends")
        if name == "logs":
            sub.add_argument("--to", default="", metavar="DIR", help="folder (default: runs/launch/NAME/logs)")
            sub.add_argument(
                "--last", type=int, default=bucket.LAST_LINES, metavar="N", help="lines to show of each host"
            )
    return top
