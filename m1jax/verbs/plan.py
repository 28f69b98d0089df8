"""`m1 plan`: what a run needs and takes on TPUs that nobody holds, as tables and as JSON."""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from m1jax.config import RunConfig, StageConfig
from m1jax.errors import UserError
from m1jax.hardware import GIB, TPUS
from m1jax.plan import answers, compiling, searching
from m1jax.plan.answers import Answer
from m1jax.plan.topologies import Topology, parse
from m1jax.show import console as consoles


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
        raise UserError(f"config {config.name} is meant for a CPU: name TPUs by --topology, for instance v5e:2x2.")
    return parse(name, config.hardware.slices if slices is None else slices)


def run(
    config: RunConfig,
    name: str | None,
    slices: int | None,
    *,
    stage: str | None = None,
    decode: int = 0,
    prices: Mapping[str, float],
    json_path: str | None = None,
) -> None:
    """Compiles the programs of a run and prints what they need; see verbs/arguments_planning.py for the arguments.

    Raises UserError for an unknown topology, and a mesh or batch that does not divide.
    """
    console = consoles.make(json_path == "-")
    topology = topology_of(config, name, slices)
    compile_it = functools.partial(_shown, console)
    found: list[dict[str, Any]] = []
    stages = [compiling.stage_named(config, stage)] if stage else answers.distinct(config.stages)
    works: list[Callable[[], Answer]] = (
        [functools.partial(answers.decode_step, config, decode, topology, compile_it)]
        if decode
        else [functools.partial(answers.train_step, config, s, topology, compile_it) for s in stages]
    )
    for work in works:
        try:
            answer = work()
        except compiling.TooLargeError as error:
            console.print(
                f"[bold]Does not fit[/]: {topology.name} has {error.limit / GIB:.2f} GiB a device for a program that "
                f"needs {error.used / GIB:.2f} GiB, {(error.used - error.limit) / GIB:.2f} GiB too much: "
                f"`m1 plan --search` looks for a mesh, accumulation and remat that fit."
            )
            found.append({"topology": topology.name, "fits": False, "hbm": error.used, "hbm_limit": error.limit})
            continue
        show(console, config, answer, topology, prices)
        found.append(answers.to_json(answer, topology))
    _write_json(json_path, found)


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
    console = consoles.make(json_path == "-")
    topology = topology_of(config, name, slices)
    chosen = [compiling.stage_named(config, stage)] if stage else list(config.stages)
    topologies = searching.comparable(topology) if any_chips else [topology]
    ranked = searching.rank(config, chosen, topologies, prices)
    first = [next(c for c in ranked if c.topology == t) for t in topologies if any(c.topology == t for c in ranked)]
    shown = sorted(first, key=lambda c: c.cost) if any_chips else ranked[:12]
    console.print(_ranking(shown, chosen, prices))
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
                show(console, setting, answer, candidate.topology, prices)
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


def _shown(console: Console, what: str, work: Callable[[], compiling.Facts]) -> compiling.Facts:
    """Runs a compilation under a running clock and says what it took."""
    started = time.perf_counter()
    with console.status(f"compiling {what} …"):
        found = work()
    console.print(f"Compiled {what} in {time.perf_counter() - started:.0f} s.", highlight=False)
    return found


def show(console: Console, config: RunConfig, answer: Answer, topology: Topology, prices: Mapping[str, float]) -> None:
    """Prints an answer as tables."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in answer.mesh.items() if size > 1) or "one device"
    verdict = "fits" if answer.fits else "DOES NOT FIT"
    where = f"{answer.topology}, {answer.chips} chips"
    console.print(
        f"\n[bold]{config.name}, {answer.program}[/] on {where}: mesh {mesh}; {answer.settings}. "
        f"It {verdict}: "
        f"{answer.hbm / GIB:.2f} of {answer.hbm_limit / GIB:.2f} GiB a device, "
        f"{(answer.hbm_limit - answer.hbm) / GIB:.2f} GiB left.",
        highlight=False,
    )
    console.print(_memory_table(answer))
    if answer.collectives:
        console.print(_collective_table(answer))
    _print_times(console, config, answer, topology)
    if answer.stages:
        console.print(_stage_table(answer, topology, prices))


def _memory_table(answer: Answer) -> Table:
    table = _table("HBM of one device (compiler; parts marked so by formula)", ("part", "GiB"))
    for part, size in answer.parts.items():
        table.add_row(part, f"{size / GIB:.3f}")
    if answer.host:
        table.add_row("in the host's memory", f"{answer.host / GIB:.3f}")
    table.add_section()
    for buffer in answer.largest:
        table.add_row(f"largest: {buffer.shape} {buffer.source}"[:90], f"{buffer.bytes / GIB:.3f}")
    return table


def _collective_table(answer: Answer) -> Table:
    title = "Collectives of one step, loops multiplied in (GB: what a device receives)"
    table = _table(title, ("kind", "mesh axes", "network", "count", "GB"), right=2)
    for c in answer.collectives:
        if c.bytes >= 1e6 or len(answer.collectives) < 8:
            network = "DCN" if c.crosses_slices else "ICI"
            table.add_row(c.kind, c.axes, network, f"{c.count:,}", f"{c.bytes / 1e9:.3f}")
    return table


def _print_times(console: Console, config: RunConfig, answer: Answer, topology: Topology) -> None:
    times = answer.times
    kernels = ", ".join(f"{name} {count:,}" for name, count in answer.kernels.items()) or "none"
    ratio = answer.hardware_flops_per_token / answer.model_flops_per_token
    console.print(
        f"Pallas kernels run: {kernels}.\n"
        f"FLOPs a token: model {answer.model_flops_per_token / 1e9:.3f} G, hardware "
        f"{answer.hardware_flops_per_token / 1e9:.3f} G ({ratio:.2f}x, what is computed again).\n"
        f"Seconds at the published peaks: compute {times.compute:.3g}, HBM {times.hbm:.3g}, ICI {times.ici:.3g}, DCN "
        f"{times.dcn:.3g}.\n"
        f"Bound (no step is faster; all overlapped): {times.bound:.4g} s, by {times.limit}; "
        f"{answer.tokens_per_second_per_chip:,.0f} tokens/s/chip, MFU "
        f"{answer.mfu(topology.chip.flops * answer.chips):.1%}. "
        f"Estimate if nothing overlapped: {times.unoverlapped:.4g} s. A real step takes longer than the bound.",
        highlight=False,
    )


def _stage_table(answer: Answer, topology: Topology, prices: Mapping[str, float]) -> Table:
    price = prices.get(topology.chip.name)
    columns = ("stage", "steps", "days at least", "chip-hours at least", *(["cost at least"] if price else []))
    table = _table("Stages with this program, at the bound", columns)
    for cost in answer.stages:
        money = [f"{cost.chip_hours * price:,.0f}"] if price else []
        table.add_row(cost.stage, f"{cost.steps:,}", f"{cost.days:,.2f}", f"{cost.chip_hours:,.0f}", *money)
    return table


def _ranking(
    ranked: Sequence["searching.Candidate"], stages: Sequence[StageConfig], prices: Mapping[str, float]
) -> Table:
    unit = "cost" if prices else "chip-hours"
    columns = ("topology", "mesh", "accumulation", "remat", "rows a chip", "GiB", "s a step", unit)
    table = _table(f"Settings for {', '.join(stage.name for stage in stages)}, cheapest first", columns, right=5)
    for c in ranked:
        mesh = " x ".join(f"{axis} {size}" for axis, size in c.mesh.items() if size > 1)
        row = (f"{c.rows:g}", f"{c.memory / GIB:.1f}", f"{c.seconds:.3g}", f"{c.cost:,.0f}")
        table.add_row(c.topology.name, mesh, str(c.accumulation), c.remat, *row)
    return table


def _table(title: str, columns: Sequence[str], right: int = 4) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= max(1, len(columns) - right) else "left", overflow="fold")
    return table


def _write_json(path: str | None, found: Sequence[Any]) -> None:
    if path == "-":
        json.dump(found, sys.stdout, indent=1)
    elif path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
