"""The tables of `m1 curriculum`, and the same numbers for machines."""

import dataclasses
import itertools
from typing import Any

from rich import box
from rich.table import Table

from m1jax.curriculum.curriculum import Curriculum, Use


def stages(curriculum: Curriculum) -> list[dict[str, Any]]:
    """What each stage reads: steps, rows (first and last), tokens, batches, difficulty and learning rate."""
    found = []
    timeline = curriculum.timeline
    for stage, (first, end) in zip(curriculum.stages, itertools.pairwise(timeline.first_steps), strict=True):
        rows = [timeline.rows_before(step) for step in (first, end)]
        found.append(
            {
                "stage": stage.name,
                "first_step": first + 1,
                "last_step": end,
                "first_row": rows[0],
                "last_row": rows[1] - 1,
                "tokens": (rows[1] - rows[0]) * stage.row_length,
                "row_length": stage.row_length,
                "batches": [list(batch) for batch in stage.batches],
                "difficulty": list(stage.difficulty),
                "rope_base": stage.rope_base,
                "learning_rate": dataclasses.asdict(stage.learning_rate),
            }
        )
    return found


def uses(curriculum: Curriculum) -> list[dict[str, Any]]:
    """The table of uses, with the times that a source was read up to the end of each stage."""
    read: dict[str, float] = {}
    found = []
    for use in curriculum.table():
        read[use.source] = read.get(use.source, 0.0) + use.epochs
        found.append({**dataclasses.asdict(use), "read": read[use.source]})
    return found


def stage_table(curriculum: Curriculum) -> Table:
    """A row for each stage."""
    timeline = curriculum.timeline
    table = Table(title=f"Curriculum: {timeline.steps:,} steps, {timeline.rows:,} rows", box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for column in ("steps", "rows", "tokens", "row length", "batch, rows", "learning rate", "RoPE base"):
        table.add_column(column, justify="right")
    for stage in stages(curriculum):
        batches = [rows for rows, _ in stage["batches"]]
        rate = stage["learning_rate"]
        table.add_row(
            stage["stage"],
            f"{stage['first_step']:,} to {stage['last_step']:,}",
            f"{stage['first_row']:,} to {stage['last_row']:,}",
            f"{stage['tokens']:,}",
            f"{stage['row_length']:,}",
            f"{batches[0]:,} to {batches[-1]:,}" if len(batches) > 1 else f"{batches[0]:,}",
            f"{rate['start']:g}" + (f" to {rate['end']:g}" if rate["end"] != rate["start"] else ""),
            f"{stage['rope_base']:g}",
        )
    return table


def use_table(curriculum: Curriculum) -> Table:
    """A row for each source that a stage reads."""
    table = Table(
        title="What each stage reads (read: times so far; first, last: epoch.packing window.row)", box=box.SIMPLE_HEAD
    )
    for column in ("stage", "source", "domain"):
        table.add_column(column, overflow="fold")
    for column in ("share", "rows", "tokens", "epochs", "read", "first", "last", "left out"):
        table.add_column(column, justify="right")
    rows = curriculum.table()
    for before, use, line in zip([None, *rows], rows, uses(curriculum), strict=False):
        new = before is None or before.stage != use.stage
        if before is not None and new:
            table.add_section()
        row = [f"{use.share:.1%}", f"{use.rows:,}", f"{use.tokens:,}", f"{use.epochs:.2f}", f"{line['read']:.2f}"]
        table.add_row(use.stage if new else "", use.source, use.domain, *row, *_ends(use), f"{use.skipped:,}")
    return table


def inserted(curriculum: Curriculum) -> dict[str, dict[str, Any]]:
    """By source that is read: how many of its documents stand among the text of others, and the tokens of these."""
    found = {}
    for name in sorted({use.source for use in curriculum.table()}):
        source = curriculum.manifest.sources[name]
        if source.surrounded:
            found[name] = {
                "documents": source.documents,
                "surrounded": source.surrounded,
                "tokens": source.tokens,
                "inserted": dict(source.inserted),
            }
    return found


def inserted_lines(curriculum: Curriculum) -> list[str]:
    """The same for people, a line for each source."""
    lines = []
    for name, counts in inserted(curriculum).items():
        tokens = sum(counts["inserted"].values())
        of = ", ".join(f"{other} {count:,}" for other, count in counts["inserted"].items())
        lines.append(
            f"{name}: {counts['surrounded']:,} of {counts['documents']:,} documents stand among other text, of weight "
            f"0: {tokens:,} tokens ({tokens / counts['tokens']:.1%} of all), from {of}."
        )
    return lines


def _ends(use: Use) -> tuple[str, str]:
    """A source's first and last row of a stage: epoch, place of the packing window in its order, row of it."""
    if not use.rows:
        return "", ""
    first, last = (f"{cursor.epoch + 1}.{cursor.turn}.{cursor.row}" for cursor in (use.start, use.last))
    return first, last
