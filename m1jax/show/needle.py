"""The needle test for people (tables, a heat map) and for machines."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from m1jax.evaluate.choice import wilson
from m1jax.evaluate.needle import Found
from m1jax.show import figures

_MEASURES: tuple[tuple[str, str, Callable[[Found], bool]], ...] = (
    ("likelihood", "right answer likeliest among {}", lambda found: found.chosen),
    ("text", "right value in the greedy answer", lambda found: found.said),
)


def data(found: Sequence[Found], candidates: int) -> dict[str, Any]:
    """Shares of right answers by length and depth, and all items; `chance` is that of the likelihood."""
    lengths, depths = _axes(found)
    shares = {
        name: [[sum(cell) / len(cell) for cell in row] for row in _cells(found, right)] for name, _, right in _MEASURES
    }
    items = [{**dataclasses.asdict(one), "chosen": one.chosen, "said": one.said} for one in found]
    return {"lengths": lengths, "depths": depths, "chance": 1 / candidates, **shares, "items": items}


def tables(found: Sequence[Found], candidates: int) -> list[Table]:
    """A table for each measure: a row for each length, a column for each depth, right of asked in each cell."""
    lengths, depths = _axes(found)
    made = []
    for name, title, right in _MEASURES:
        chance = f" (chance {1 / candidates:.1%})" if name == "likelihood" else ""
        table = Table(title=f"Needle: {title.format(candidates)}{chance}")
        for heading in ("tokens", *(f"depth {depth:.0%}" for depth in depths), "all", "95% interval"):
            table.add_column(heading, justify="right")
        for length, row in zip(lengths, _cells(found, right), strict=True):
            hits = [hit for cell in row for hit in cell]
            low, high = wilson(sum(hits), len(hits))
            cells = [f"{sum(cell)}/{len(cell)}" for cell in row]
            table.add_row(f"{length:,}", *cells, f"{sum(hits)}/{len(hits)}", f"{low:.1%} – {high:.1%}")
        made.append(table)
    return made


def plot(found: Sequence[Found], candidates: int, path: Path, title: str) -> None:
    """Draws both measures as heat maps; raises UserError where matplotlib is missing or refuses."""
    lengths, depths = _axes(found)
    figure = figures.make(3.2 + 1.2 * len(lengths), 1.8 + 0.45 * len(depths))
    for number, (_, heading, right) in enumerate(_MEASURES, 1):
        axes = figure.add_subplot(1, len(_MEASURES), number)
        # Depth goes down the page, as the text does.
        shares = [[sum(cell) / len(cell) for cell in row] for row in zip(*_cells(found, right), strict=True)]
        axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_title(heading.format(candidates), fontsize=9)
        axes.set(xlabel="tokens", ylabel="depth")
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                axes.text(x, y, f"{share:.0%}", ha="center", va="center", fontsize=8)
    figure.suptitle(title)
    figures.save(figure, path)


def _axes(found: Sequence[Found]) -> tuple[list[int], list[float]]:
    return sorted({one.length for one in found}), sorted({one.depth for one in found})


def _cells(found: Sequence[Found], right: Callable[[Found], bool]) -> list[list[list[bool]]]:
    """Whether each trial was right, by length and depth."""
    lengths, depths = _axes(found)
    return [
        [[right(one) for one in found if (one.length, one.depth) == (length, depth)] for depth in depths]
        for length in lengths
    ]
