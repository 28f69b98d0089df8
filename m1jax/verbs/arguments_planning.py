"""Verbs that ask what a run would cost."""

import argparse
import os
from typing import Any

from m1jax.errors import UserError
from m1jax.verbs.arguments import add, config_of


def register(verbs: Any) -> None:
    """Adds the verbs of this file."""
    example = "m1 plan --config configs/m1_14b.py --topology v5p:4x8x8 --set train.accumulation=2"
    sub = add(verbs, "plan", "memory, traffic and time of a run on TPUs that need not be there", example, _plan)
    sub.add_argument("--topology", metavar="CHIP:SHAPE", help="TPU slice, e.g. v5p:4x8x8 (default: the config's)")
    sub.add_argument("--slices", type=int, metavar="N", help="slices joined by the data-centre network")
    sub.add_argument("--stage", metavar="NAME", help="this stage only (default: every program of the run)")
    sub.add_argument("--decode", type=_count, default=0, metavar="ROWS", help="the decode step of ROWS rows instead")
    sub.add_argument("--search", action="store_true", help="rank mesh, accumulation and remat, cheapest first")
    sub.add_argument("--confirm", type=_count, default=1, metavar="N", help="with --search: settings to compile")
    sub.add_argument("--write", metavar="FILE", help="with --search: write the best as --set arguments, one a line")
    sub.add_argument("--chips", choices=("any",), help="with --search: compare v5e, v5p, v6e and tpu7x")
    sub.add_argument("--price", nargs="*", default=[], metavar="CHIP=P", help="price of a chip-hour, e.g. v5p=4.2")
    sub.add_argument("--json", metavar="FILE", help="write the answers as JSON, - for standard output")


def _count(text: str) -> int:
    """A whole number from 0 on; raises what argparse makes a sentence of."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _plan(args: argparse.Namespace) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where it plans there need be no TPU, and a TPU is not taken
    from m1jax.verbs import plan

    config, prices = config_of(args), plan.prices(args.price)
    search = args.search or bool(args.chips)
    if args.decode and search:
        raise UserError("--decode plans one setting: leave out --search and --chips, or --decode.")
    if args.write and not search:
        raise UserError("--write writes what --search found: add --search.")
    if search:
        plan.search(
            config,
            args.topology,
            args.slices,
            stage=args.stage,
            any_chips=bool(args.chips),
            prices=prices,
            confirm=args.confirm,
            write=args.write,
            json_path=args.json,
        )
    else:
        plan.run(
            config, args.topology, args.slices, stage=args.stage, decode=args.decode, prices=prices, json_path=args.json
        )
