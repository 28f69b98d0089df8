"""`m1 plan`: memory, traffic and time of a run on TPUs that are not attached, as tables and as JSON."""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.hardware import GIB, TPUS
from m1jax.plan.topologies import Topology, parse
from m1jax.show import console as consoles
from m1jax.verbs.arguments import Parser, add_config, config_of, example

if TYPE_CHECKING:  # they load JAX, which takes seconds: `plan` and `search` import what they need
    from m1jax.plan.answers import Answer
    from m1jax.plan.compiling import Facts


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 plan --config configs/m1_14b.py --topology v5p:4x8x8 --set train.accumulation=2")
    add_config(parser)
    parser.add_argument("--topology", metavar="CHIP:SHAPE", help="TPU slice, e.g. v5p:4x8x8 (default: the config's)")
    parser.add_argument("--slices", type=int, metavar="N", help="slices joined by the data-centre network")
    parser.add_argument("--stage", metavar="NAME", help="this stage only (default: every program of the run)")
    parser.add_argument("--decode", type=_count, default=0, metavar="ROWS", help="the decode step of ROWS rows instead")
    parser.add_argument("--serve", action="store_true", help="conversations that `m1 serve` holds, and their tokens/s")
    parser.add_argument(
        "--rl", action="store_true", help="every program of an iteration of `m1 rl`, not the step alone"
    )
    parser.add_argument("--search", action="store_true", help="rank mesh, accumulation and remat, cheapest first")
    parser.add_argument("--confirm", type=_count, default=1, metavar="N", help="with --search: settings to compile")
    parser.add_argument("--write", metavar="FILE", help="with --search: write the best as --set arguments, one a line")
    parser.add_argument("--chips", choices=("any",), help="with --search: compare v5e, v5p, v6e and tpu7x")
    parser.add_argument("--price", nargs="*", default=[], metavar="CHIP=P", help="price of a chip-hour, e.g. v5p=4.2")
    parser.add_argument("--json", metavar="FILE", help="write the answers as JSON, - for standard output")


def _count(text: str) -> int:
    """A whole number, 0 or more; raises ArgumentTypeError, which argparse prints."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # planning needs no TPU, and must not occupy one
    config, money = config_of(args, args.stage), prices(args.price)
    searched = args.search or bool(args.chips)
    if args.rl + args.serve + bool(args.decode) + searched > 1:
        raise UserError("--rl, --serve, --decode and --search (or --chips) are plans of their own: give one of them.")
    if args.serve and (args.stage or args.price):
        raise UserError("--serve plans a model, of which every stage is served alike: leave out --stage and --price.")
    if args.write and not searched:
        raise UserError("--write writes what --search found: add --search.")
    shared = {"stage": args.stage, "prices": money, "json_path": args.json}
    if searched:
        any_chips = bool(args.chips)
        search(
            config, args.topology, args.slices, any_chips=any_chips, confirm=args.confirm, write=args.write, **shared
        )
    elif args.serve:
        plan_serving(config, args.topology, args.slices, args.json)
    elif args.rl:
        plan_iterations(config, args.topology, args.slices, **shared)
    else:
        plan(config, args.topology, args.slices, decode=args.decode, **shared)


def prices(entries: Sequence[str]) -> dict[str, float]:
    """`v5p=4.2` and the like as a mapping; raises UserError for another form or an unknown chip."""
    found = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        try:
            found[name] = float(text)
        except ValueError as error:
            raise UserError(f"price {entry!r} is not CHIP=NUMBER: write for instance v5p=4.2.") from error
        if name not in TPUS:
            raise UserError(f"price {entry!r} names no known chip: {', '.join(TPUS)} are known.")
    return found


def topology_of(config: RunConfig, name: str | None, slices: int | None) -> Topology:
    """The topology asked for, else the config's; raises UserError where neither names TPUs."""
    name = name or config.hardware.topology
    if name == "cpu":
        raise UserError(f"config {config.name} is for a CPU: name TPUs with --topology, for instance v5e:2x2.")
    return parse(name, config.hardware.slices if slices is None else slices)


def plan(
    config: RunConfig,
    name: str | None,
    slices: int | None,
    *,
    stage: str | None = None,
    decode: int = 0,
    prices: Mapping[str, float],
    json_path: str | None = None,
) -> None:
    """Compiles the programs of a run and prints what they need; the arguments are those of the command.

    Raises UserError for an unknown topology, and a mesh or batch that does not divide.
    """
    from m1jax.plan import answers, compiling
    from m1jax.show import plan_tables

    console = consoles.make(json_path == "-")
    topology = topology_of(config, name, slices)
    compile_it = functools.partial(_shown, console)
    found: list[dict[str, Any]] = []
    asked = [compiling.stage_named(config, stage)] if stage else list(config.stages)
    if not decode:
        compiling.mesh_for(config, topology, asked)  # before minutes of compiling
    stages = answers.distinct(asked)
    works: list[Callable[[], Answer]] = (
        [functools.partial(answers.decode_step, config, decode, topology, compile_it)]
        if decode
        else [functools.partial(answers.train_step, config, s, topology, compile_it) for s in stages]
    )
    for work in works:
        try:
            answer = work()
        except compiling.TooLargeError as error:
            console.print(_too_large(topology, error))
            found.append({"topology": topology.name, "fits": False, "hbm": error.used, "hbm_limit": error.limit})
            continue
        plan_tables.show(console, config, answer, topology, prices)
        found.append(answers.to_json(answer, topology))
    _write_json(json_path, found)


def plan_iterations(
    config: RunConfig,
    name: str | None,
    slices: int | None,
    *,
    stage: str | None,
    prices: Mapping[str, float],
    json_path: str | None,
) -> None:
    """Compiles what an iteration of `m1 rl` runs and prints what each program needs, and what rests beside it.

    Raises UserError for a config of another objective, an unknown topology, and what does not divide.
    """
    from m1jax.plan import answers, compiling, rollouts
    from m1jax.show import plan_tables

    if config.objective != "policy":
        raise UserError(
            f"--rl plans `m1 rl`, and config {config.name} has the objective {config.objective!r}: leave it out."
        )
    console = consoles.make(json_path == "-")
    topology = topology_of(config, name, slices)
    found: list[dict[str, Any]] = []
    for one in answers.distinct([compiling.stage_named(config, stage)] if stage else config.stages):
        try:
            iteration = rollouts.iteration(config, one, topology, functools.partial(_shown, console))
        except compiling.TooLargeError as error:
            console.print(_too_large(topology, error))
            found.append({"topology": topology.name, "fits": False, "hbm": error.used, "hbm_limit": error.limit})
            continue
        plan_tables.show(console, config, iteration.step, topology, prices)
        plan_tables.show_iteration(console, iteration)
        found.append(rollouts.to_json(iteration, topology))
    _write_json(json_path, found)


def plan_serving(config: RunConfig, name: str | None, slices: int | None, json_path: str | None) -> None:
    """Compiles what `m1 serve` runs and prints how many conversations fit; the topology's devices divide one model.

    Raises UserError for an unknown topology, a model that does not divide over it, and where no conversation fits.
    """
    from m1jax.plan import serving
    from m1jax.show import plan_tables

    console = consoles.make(json_path == "-")
    topology = topology_of(config, name, slices)
    contexts = [length for length in serving.CONTEXTS if length <= config.model.max_positions]
    compile_it = functools.partial(_shown, console)
    found = [
        serving.serving(config, context, topology, compile_it) for context in contexts or [config.model.max_positions]
    ]
    plan_tables.show_serving(console, config, found, topology)
    _write_json(json_path, [serving.to_json(one, topology) for one in found])


def _too_large(topology: Topology, error: Any) -> str:
    return (
        f"[bold]Does not fit[/]: {topology.name} has {error.limit / GIB:.2f} GiB a device for a program that "
        f"needs {error.used / GIB:.2f} GiB, {(error.used - error.limit) / GIB:.2f} GiB too much: "
        f"`m1 plan --search` looks for a mesh, accumulation and remat that fit."
    )


def search(
    config: RunConfig,
    name: str | None,
    slices: int | None,
    *,
    stage: str | None,
    any_chips: bool,
    prices: Mapping[str, float],
    confirm: int,
    write: str | None,
    json_path: str | None,
) -> None:
    """Ranks settings by the analytic model, compiles the best, and writes the first that fits as overrides.

    Raises UserError where none fits.
    """
    from m1jax.plan import answers, compiling, searching
    from m1jax.show import plan_tables

    console = consoles.make(json_path == "-")
    topology = topology_of(config, name, slices)
    chosen = [compiling.stage_named(config, stage)] if stage else list(config.stages)
    topologies = searching.comparable(topology) if any_chips else [topology]
    ranked = searching.rank(config, chosen, topologies, prices)
    first = [next(c for c in ranked if c.topology == t) for t in topologies if any(c.topology == t for c in ranked)]
    shown = sorted(first, key=lambda c: c.cost) if any_chips else ranked[:12]
    console.print(plan_tables.ranking(shown, chosen, prices))
    console.print(
        "Memory by formula; time: every unit at its published peak, nothing overlapped; traffic by formula. An order, "
        "not a prediction.",
        highlight=False,
    )
    best = None
    for candidate in ranked[:confirm]:
        setting = candidate.applied(config)
        try:
            confirmed = [
                answers.train_step(setting, one, candidate.topology, functools.partial(_shown, console))
                for one in answers.distinct(chosen)
            ]
        except compiling.TooLargeError as error:
            console.print(f"{' '.join(candidate.overrides())} does not fit after all: {error}.")
            continue
        if all(answer.fits for answer in confirmed):
            for answer in confirmed:
                plan_tables.show(console, setting, answer, candidate.topology, prices)
            best = candidate
            break
    if confirm and best is None:
        raise UserError(
            f"none of the {min(confirm, len(ranked))} best settings fits when compiled, of {len(ranked)} that fit by "
            f"formula: raise --confirm."
        )
    best = best or ranked[0]
    lines = best.overrides()
    console.print("Best: " + " ".join(f"--set {line}" for line in lines), highlight=False, soft_wrap=True)
    if write:
        Path(write).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _write_json(json_path, [candidate.to_json() for candidate in ranked])


def _shown(console: Console, what: str, work: Callable[[], "Facts"]) -> "Facts":
    """Runs a compilation under a running clock and says what it took."""
    started = time.perf_counter()
    with console.status(f"compiling {what} …"):
        found = work()
    console.print(f"Compiled {what} in {time.perf_counter() - started:.0f} s.", highlight=False)
    return found


def _write_json(path: str | None, found: Sequence[Any]) -> None:
    if path == "-":
        json.dump(found, sys.stdout, indent=1)
    elif path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
