"""Verbs of a machine: doctor."""

import argparse
from typing import Any

from m1jax.errors import UserError
from m1jax.verbs.arguments import CONFIG, add, config_of


def register(verbs: Any) -> None:
    """Adds the verb to the command."""
    summary = "measure this machine and say what is slow or broken (exit status 1)"
    sub = add(verbs, "doctor", summary, f"m1 doctor {CONFIG} --bucket gs://my-bucket/run", _doctor, config=False)
    sub.add_argument("--config", metavar="FILE", help="also check the mesh and the kernels of this run")
    sub.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as for m1 train"
    )
    sub.add_argument("--bucket", default="", metavar="DIR", help="folder or gs:// to write to (default: the run's)")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    processes_arguments(sub)


def processes_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --processes and --process."""
    group = parser.add_argument_group(
        "several processes", "Found by itself on a TPU pod, under Slurm and under Open MPI; elsewhere give all three."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")


def _doctor(args: argparse.Namespace) -> int:
    given = (args.coordinator, args.processes, args.process)
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator, --processes and --process belong together: give all three, or none.")
    if args.overrides and not args.config:
        raise UserError("--set changes a config: give --config too.")
    config = config_of(args) if args.config else None

    from m1jax.parallel.processes import Processes
    from m1jax.verbs import doctor

    return doctor.run(
        config, bucket=args.bucket, as_json=args.json, given=Processes(*given) if args.coordinator else None
    )
