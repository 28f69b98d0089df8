"""`m1 doctor`: finds what is slow or broken on this machine before a run is started on it."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.verbs.arguments import CONFIG, Parser, add_json, add_processes, config_of, example, processes_of

if TYPE_CHECKING:  # they load JAX, which takes seconds: `diagnose` imports what it needs
    from m1jax.parallel.checkup.finding import Finding
    from m1jax.parallel.processes import Processes

_COLOURS = {"ok": "green", "slow": "yellow", "broken": "bold red", "left out": "dim"}


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 doctor {CONFIG} --bucket gs://my-bucket/run")
    parser.add_argument("--config", metavar="FILE", help="also check the mesh and the kernels of this run")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as for m1 train"
    )
    parser.add_argument("--bucket", default="", metavar="DIR", help="folder or gs:// to write to (default: the run's)")
    add_json(parser, "a table")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    given = processes_of(args)
    if args.overrides and not args.config:
        raise UserError("--set changes a config: give --config too.")
    return diagnose(config_of(args) if args.config else None, bucket=args.bucket, as_json=args.json, given=given)


def diagnose(
    config: RunConfig | None, *, bucket: str = "", as_json: bool = False, given: "Processes | None" = None
) -> int:
    """Checks this machine, and with `config` the mesh and kernels of a run on it; the exit status, 1 if any is broken.

    Several processes check together, each its own devices and disk, all of them the mesh and the clocks. `bucket` is a
    folder (mounted, say) or gs:// address to write to; by default the run's folder.
    """
    import jax

    from m1jax.parallel import jax_setup, processes
    from m1jax.parallel.checkup import checks
    from m1jax.parallel.checkup.finding import BROKEN

    jax_setup.prepare()
    processes.start(given)
    findings = checks.run(config, bucket)
    if as_json:
        print(json.dumps({"host": jax.process_index(), "findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        title = f"m1 doctor, host {jax.process_index()} of {jax.process_count()}"
        consoles.make().print(_table(title, findings))
    return int(any(finding.state == BROKEN for finding in findings))


def _table(title: str, findings: Sequence["Finding"]) -> Table:
    table = Table(title=title)
    table.add_column("check")
    table.add_column("")
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        state = f"[{_COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(finding.check, state, finding.found, finding.advice)
    return table
