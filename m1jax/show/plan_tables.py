"""The tables of `m1 plan`."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from m1jax.config import RunConfig, StageConfig
from m1jax.hardware import GIB
from m1jax.plan.answers import Answer
from m1jax.plan.rollouts import Iteration
from m1jax.plan.searching import Candidate
from m1jax.plan.serving import Serving
from m1jax.plan.topologies import Topology


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


def show_iteration(console: Console, found: Iteration) -> None:
    """Prints what an iteration of `m1 rl` needs besides its step."""
    columns = ("program", "its own GiB", "beside it", "of", "s a call", "calls", "bound by")
    table = _table("An iteration: HBM of one device, seconds at the published peaks", columns, right=6)
    for part in found.parts:
        sizes = (part.own, part.beside, part.limit)
        table.add_row(
            part.name if part.fits else f"{part.name}: DOES NOT FIT",
            *(f"{size / GIB:.2f}" for size in sizes),
            f"{part.times.bound:.3g}",
            f"{part.calls:,.4g}",
            part.times.limit,
        )
    console.print(table)
    resident = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in found.resident.items() if size)
    most = max(found.parts, key=lambda part: part.own + part.beside)
    console.print(
        f"Resting: {resident}.\n"
        f"An iteration {'fits' if found.fits else 'DOES NOT FIT'}: at most {(most.own + most.beside) / GIB:.2f} of "
        f"{most.limit / GIB:.2f} GiB ({most.name}). One program after the other, each at its bound and every "
        f"continuation as long as it may be: {found.seconds:.4g} s for {found.tokens:,} sampled tokens. A real "
        f"iteration takes longer.",
        highlight=False,
    )


def show_serving(console: Console, config: RunConfig, found: Sequence[Serving], topology: Topology) -> None:
    """Prints how many conversations a topology serves at once, and how fast."""
    columns = ("context", "at once", "weights", "caches", "program", "of GiB", "ms a token", "tokens/s", "by")
    table = _table(
        f"{config.name} served on {topology.name}, {topology.chips} chips: GiB of one device", columns, right=8
    )
    for one in found:
        sizes = (one.weights, one.cache + one.reading, one.program, one.limit)
        table.add_row(
            f"{one.context:,}",
            f"{one.rows:,}",
            *(f"{size / GIB:.2f}" for size in sizes),
            f"{1e3 * one.token.bound:.3g}",
            f"{one.tokens_per_second:,.0f}",
            one.token.limit,
        )
    console.print(table)
    console.print(
        "Times at the published peaks, every row as long as it may be, of all rows together: no server is faster. "
        + "; ".join(f"{one.context:,}: {1e3 * one.piece.bound:.3g} ms for a piece of a prompt" for one in found)
        + ".",
        highlight=False,
    )


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


def ranking(ranked: Sequence[Candidate], stages: Sequence[StageConfig], prices: Mapping[str, float]) -> Table:
    """A row for each setting."""
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
