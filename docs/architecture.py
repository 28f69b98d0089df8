"""Draws docs/architecture.png, the rooms of m1jax on their floors: `python docs/architecture.py` (needs matplotlib).

A room imports only rooms with smaller numbers; tests/test_architecture.py compares the numbers with the floors.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from m1jax.show import figures

WIDTH, HEIGHT = 6.0, 8.65
"""Inches; 150 pixels each."""
HIGH, INSET = 0.64, 0.06
"""Height of a room, and space between its edge and its number."""
ROAD = "#1f5c99"


class Room(NamedTuple):
    """A room: its number among the floors, its name, what it does, left edge and width in inches."""

    number: int
    name: str
    does: str
    left: float
    width: float


@dataclass(frozen=True)
class Floor:
    """Rooms beside each other, above `low`; the floor's name is below them on one side."""

    name: str
    colour: str
    low: float
    rooms: tuple[Room, ...]
    side: str = "right"


@dataclass(frozen=True)
class Arrow:
    """What travels from room to room: the points of each of its lines, and the place of its name."""

    label: str
    at: tuple[float, float]
    lines: tuple[tuple[tuple[float, float], ...], ...]
    side: str = "center"


FLOORS = (
    Floor(
        "what every room may use", "#e6e6e6", 0.35,
        (
            Room(1, "errors", "a sentence", 0.25, 0.73), Room(2, "hardware", "chips", 1.02, 0.89),
            Room(3, "disk", "is it full?", 1.95, 0.66), Room(4, "artefact", "complete?", 2.65, 0.82),
            Room(5, "config", "a run", 3.51, 0.66), Room(6, "client", "models", 4.21, 0.68),
            Room(7, "grading", "is it right?", 4.93, 0.82),
        ),
    ),
    Floor(
        "arithmetic of the model", "#fde3c3", 1.50,
        (
            Room(8, "kernels", "attention", 0.25, 1.25), Room(9, "model", "decoder, loss", 1.60, 1.30),
            Room(10, "parallel", "mesh, shardings", 3.00, 1.45), Room(11, "optim", "AdamW, clip", 4.55, 1.20),
        ),
    ),
    Floor(
        "text becomes tokens", "#cfe3f5", 2.70,
        (Room(13, "text", "sources, documents", 1.25, 1.75), Room(12, "tokenizer", "text ↔ ids", 4.10, 1.65)),
    ),
    Floor(
        "tokens become batches", "#cfe3f5", 3.95,
        (Room(15, "curriculum", "which row is next", 0.25, 1.75), Room(14, "rows", "packing, stores", 4.10, 1.65)),
        side="left",
    ),
    Floor(
        "batches become a state", "#cfe3f5", 5.20,
        (
            Room(16, "train", "step, hooks, checkpoints", 0.25, 2.15),
            Room(17, "objectives", "what is minimised", 4.10, 1.65),
        ),
    ),
    Floor(
        "what a state is for", "#d5ecd2", 6.45,
        (
            Room(18, "generate", "samples", 0.25, 0.88), Room(19, "rollouts", "rewards", 1.18, 0.84),
            Room(20, "serve", "a server", 2.07, 0.84), Room(21, "evaluate", "answers", 2.96, 0.88),
            Room(22, "convert", "for PyTorch", 3.89, 0.94), Room(23, "plan", "step's cost", 4.88, 0.87),
        ),
    ),
    Floor(
        "how it is used", "#e6dbf2", 7.60,
        (
            Room(24, "loading", "m1jax.load", 0.25, 1.45), Room(25, "show", "tables, plots", 1.85, 1.45),
            Room(26, "verbs", "one file for each m1 verb", 3.45, 2.30),
        ),
    ),
)  # fmt: skip


def arrows() -> list[Arrow]:
    """The road of the data."""
    text, rows, train, uses = (FLOORS[i].low for i in (2, 3, 4, 5))
    half, above = HIGH / 2, HIGH / 2 + 0.14
    fork = uses - 0.24
    to_uses = tuple(((0.92, train + HIGH), (0.92, fork), (x, fork), (x, uses)) for x in (0.69, 3.40, 4.36))
    return [
        Arrow("raw text", (0.22, text + above), (((0.25, text + half), (1.25, text + half)),), "left"),
        Arrow("Document", (3.55, text + above), (((3.00, text + half), (4.10, text + half)),)),
        Arrow("ids", (4.84, rows - 0.30), (((4.92, text + HIGH), (4.92, rows)),), "right"),
        Arrow("Row", (3.05, rows + above), (((4.10, rows + half), (2.00, rows + half)),)),
        Arrow("batch", (2.02, train - 0.30), (((1.92, rows + HIGH), (1.92, train)),), "left"),
        Arrow("(sum, denominator)", (3.25, train + above), (((4.10, train + half), (2.40, train + half)),)),
        Arrow("state", (0.82, fork - 0.14), to_uses, "right"),
    ]


def draw(path: Path) -> None:
    """Writes the picture, 900 pixels wide."""
    figure = figures.make(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    rule = "Data follows the arrows; a room imports only rooms of smaller numbers."
    axes.text(0.1, HEIGHT - 0.16, rule, va="center", fontsize=10)
    for floor in FLOORS:
        _draw_floor(axes, floor)
    for arrow in arrows():
        axes.text(*arrow.at, arrow.label, ha=arrow.side, va="center", fontsize=9, color=ROAD, style="italic")
        for line in arrow.lines:
            _draw_line(axes, line)
    figure.savefig(path, dpi=150)


def _draw_floor(axes: Any, floor: Floor) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    low, colour = floor.low, floor.colour
    axes.add_patch(Rectangle((0.1, low - 0.1), WIDTH - 0.2, HIGH + 0.2, facecolor=colour, alpha=0.4, linewidth=0))
    edge = 0.12 if floor.side == "left" else WIDTH - 0.12
    axes.text(edge, low - 0.12, floor.name, ha=floor.side, va="top", fontsize=9, color="#555555")
    for room in floor.rooms:
        shape = "round,pad=0,rounding_size=0.08"
        box = FancyBboxPatch((room.left, low), room.width, HIGH, boxstyle=shape, facecolor=colour, edgecolor="#444444")
        axes.add_patch(box)
        middle = room.left + room.width / 2
        axes.text(middle, low + HIGH * 0.52, room.name, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(middle, low + HIGH * 0.2, room.does, ha="center", va="center", fontsize=9)
        corner = room.left + INSET, low + HIGH - INSET
        axes.text(*corner, str(room.number), ha="left", va="top", fontsize=9, color="#777777")


def _draw_line(axes: Any, points: tuple[tuple[float, float], ...]) -> None:
    for start, end in itertools.pairwise(points):
        style = "-|>" if end == points[-1] else "-"
        look = {"arrowstyle": style, "color": ROAD, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=look)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
