"""`m1 curriculum`: what the stages of a run will read of its packed rows, before it runs; and what a step has read."""

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.curriculum.curriculum import Curriculum, Use
from m1jax.curriculum.loader import Loader, Served
from m1jax.errors import UserError
from m1jax.rows import packed
from m1jax.rows.manifest import document_ids, index_path
from m1jax.rows.packed import Stores
from m1jax.rows.storage import Storage, is_remote
from m1jax.show import console as consoles
from m1jax.show.mixture_plot import plot
from m1jax.tokenizer import Tokenizer

_STYLES = ("cyan", "yellow", "green", "magenta")
_EXAMPLE_PIECES, _EXAMPLE_CHARACTERS = 6, 160


def open_curriculum(config: RunConfig) -> tuple[Curriculum, Stores]:
    """The run's curriculum over its packed rows, and the row stores that it reads.

    Raises UserError for missing or broken rows, a mixture that names no source, a source that would be read too often,
    or a tokenizer larger than the model.
    """
    curriculum = _curriculum(config)
    return curriculum, packed.open_stores(config.rows_address, curriculum.manifest, curriculum.used)


def _curriculum(config: RunConfig) -> Curriculum:
    manifest = packed.load_manifest(config.rows_address)
    if manifest.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the rows in {config.rows_address} use {manifest.vocab_size} tokens, but model.vocab_size is "
            f"{config.model.vocab_size}: raise it, or train a smaller tokenizer and pack again."
        )
    return Curriculum(config.stages, manifest, config.seed, config.data.max_epochs)


def show(config: RunConfig, *, examples: int = 1, plot_path: str = "", as_json: bool = False) -> None:
    """Prints what each stage will read of each source, and `examples` decoded rows from the beginning of each stage.

    `plot_path` names a picture to draw of the mixture over tokens. Raises UserError as `open_curriculum` does.
    """
    console = consoles.make(as_json)
    curriculum, stores = open_curriculum(config)
    loader = Loader(curriculum, stores)
    tokenizer = _tokenizer(config, curriculum) if examples else None
    shown: list[tuple[str, list[dict[str, Any]]]] = []
    for i, stage in enumerate(config.stages):
        if tokenizer is not None:
            rows = loader.documents(sum(s.steps for s in config.stages[:i]))[:examples]
            shown.append((stage.name, _described(config, curriculum, tokenizer, rows)))
    if plot_path:
        plot(curriculum, Path(plot_path), f"{config.name}: what is read")
    if as_json:
        found = {"stages": _stages(curriculum), "uses": _uses(curriculum), "examples": dict(shown)}
        print(json.dumps(found, ensure_ascii=False))
        return
    console.print(_stage_table(curriculum))
    console.print(_use_table(curriculum))
    worst = max(curriculum.quantisation_error(stage) for stage in range(len(config.stages)))
    console.print(f"Shares are met within {worst:.2%} of each (weights are quantised to whole rows of a period).")
    if shown:
        console.print(
            "[document from its token …] text {last token of the piece: it has no target, weight 0}", markup=False
        )
    for name, described in shown:
        for row in described:
            console.print(f"\n[bold]Stage {name}[/], {_place(row)}")
            _print_pieces(console, row)
    if plot_path:
        console.print(f"Plot in {plot_path}.")


def replay(config: RunConfig, step: int, *, as_json: bool = False) -> None:
    """Prints the documents that step `step` reads, counted from 1 as in the log and in metrics.jsonl, over all hosts.

    Raises UserError as `open_curriculum` does, and for a step that the run does not have.
    """
    console = consoles.make(as_json)
    curriculum, stores = open_curriculum(config)
    if not 1 <= step <= curriculum.steps:
        raise UserError(f"step {step} is not in the run, which has steps 1 to {curriculum.steps}.")
    tokenizer = _tokenizer(config, curriculum)
    rows = _described(config, curriculum, tokenizer, Loader(curriculum, stores).documents(step - 1))
    if as_json:
        print(json.dumps({"step": step, "rows": rows}, ensure_ascii=False))
        return
    stage = curriculum.stages[curriculum.stage_of_step(step - 1)]
    console.print(f"Step {step:,} of {curriculum.steps:,}, stage {stage.name}: {len(rows)} rows.")
    for row in rows:
        console.print(f"\n[bold]{_place(row)}[/]")
        _print_pieces(console, row, limit=len(row["pieces"]))


def _tokenizer(config: RunConfig, curriculum: Curriculum) -> Tokenizer:
    tokenizer = tokenizers.of_run(config)
    if tokenizer.fingerprint != curriculum.manifest.tokenizer:
        raise UserError(
            f"the rows in {config.rows_address} were encoded by tokenizer {curriculum.manifest.tokenizer}, but "
            f"{config.tokenizer} is {tokenizer.fingerprint}: pack again, or give the right tokenizer."
        )
    return tokenizer


def _described(
    config: RunConfig, curriculum: Curriculum, tokenizer: Tokenizer, rows: Sequence[Served]
) -> list[dict[str, Any]]:
    """Rows with the identifiers and the text of their pieces; `no_target` is the text of the last token."""
    ids: dict[str, dict[int, str]] = {}
    for name in {served.place.source for served in rows}:
        numbers = {document for served in rows if served.place.source == name for document, _, _ in served.pieces}
        ids[name] = _document_ids(config, curriculum.manifest.sources[name].of or name, numbers)
    described = []
    for served in rows:
        starts = np.cumsum([0, *(length for _, _, length in served.pieces)]).tolist()
        pieces = []
        for start, (document, offset, length) in zip(starts, served.pieces, strict=False):
            tokens = served.row.tokens[start : start + length].tolist()
            pieces.append(
                {
                    "document": ids[served.place.source][document],
                    "offset": offset,
                    "tokens": length,
                    "text": _text(tokenizer, tokens[:-1]),
                    "no_target": _text(tokenizer, tokens[-1:]),
                }
            )
        padding = served.row.row_length - len(served.row.tokens)
        described.append(
            {"number": served.number, **dataclasses.asdict(served.place), "padding": padding, "pieces": pieces}
        )
    return described


def _text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """What ids stand for; the end of a document is written as its name."""
    parts = ["" if i != tokenizer.eos_id else "<eos>" for i in ids]
    return tokenizer.decode_bytes(ids).decode(errors="replace") + "".join(parts)


def _document_ids(config: RunConfig, source: str, numbers: Iterable[int]) -> dict[int, str]:
    if not is_remote(config.rows_address):
        return document_ids(Path(config.rows_address), source, numbers)
    with tempfile.TemporaryDirectory() as folder:
        path = index_path(Path(folder), source)
        path.parent.mkdir(parents=True)
        path.write_bytes(Storage(config.rows_address).read(index_path(Path(), source).as_posix()))
        return document_ids(Path(folder), source, numbers)


def _place(row: dict[str, Any]) -> str:
    return (
        f"row {row['number']:,} (step {row['step'] + 1:,}): {row['source']}, epoch {row['epoch'] + 1}, packing window "
        f"{row['packing_window']:,}, row {row['row']:,} of its file"
    )


def _print_pieces(console: Console, row: dict[str, Any], limit: int = _EXAMPLE_PIECES) -> None:
    """The pieces of a row: a colour each in a terminal, brackets in plain text; {tokens} that are no target's input."""
    for i, piece in enumerate(row["pieces"][:limit]):
        style = _STYLES[i % len(_STYLES)]
        text = piece["text"]
        if len(text) > _EXAMPLE_CHARACTERS:
            half = _EXAMPLE_CHARACTERS // 2
            text = f"{text[:half]} […] {text[-half:]}"
        head = f"[{piece['document']} from token {piece['offset']:,}, {piece['tokens']:,} tokens] "
        line = Text(head, style="dim") + Text(_visible(text), style=style)
        console.print(line + Text("{" + _visible(piece["no_target"]) + "}", style="reverse"), soft_wrap=True)
    if (more := len(row["pieces"]) - limit) > 0:
        console.print(Text(f"… and {more} more pieces", style="dim"))
    if row["padding"]:
        console.print(Text(f"and {row['padding']:,} tokens of padding, weight 0", style="dim"))


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")


def _stages(curriculum: Curriculum) -> list[dict[str, Any]]:
    first = 0
    found = []
    for stage in curriculum.stages:
        rows = curriculum.first_row(first), curriculum.first_row(first + stage.steps)
        found.append(
            {
                "stage": stage.name,
                "first_step": first + 1,
                "last_step": first + stage.steps,
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
        first += stage.steps
    return found


def _uses(curriculum: Curriculum) -> list[dict[str, Any]]:
    """The table of uses, with the times that a source was read up to the end of each stage."""
    read: dict[str, float] = {}
    found = []
    for use in curriculum.table():
        read[use.source] = read.get(use.source, 0.0) + use.epochs
        found.append({**dataclasses.asdict(use), "read": read[use.source]})
    return found


def _stage_table(curriculum: Curriculum) -> Table:
    rows = curriculum.first_row(curriculum.steps)
    table = Table(title=f"Curriculum: {curriculum.steps:,} steps, {rows:,} rows", box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for column in ("steps", "rows", "tokens", "row length", "batch, rows", "learning rate", "RoPE base"):
        table.add_column(column, justify="right")
    for stage in _stages(curriculum):
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


def _use_table(curriculum: Curriculum) -> Table:
    table = Table(
        title="What each stage reads (read: times so far; first, last: epoch.packing window.row)", box=box.SIMPLE_HEAD
    )
    for column in ("stage", "source", "domain"):
        table.add_column(column, overflow="fold")
    for column in ("share", "rows", "tokens", "epochs", "read", "first", "last", "left out"):
        table.add_column(column, justify="right")
    uses = curriculum.table()
    for before, use, line in zip([None, *uses], uses, _uses(curriculum), strict=False):
        new = before is None or before.stage != use.stage
        if before is not None and new:
            table.add_section()
        row = [f"{use.share:.1%}", f"{use.rows:,}", f"{use.tokens:,}", f"{use.epochs:.2f}", f"{line['read']:.2f}"]
        table.add_row(use.stage if new else "", use.source, use.domain, *row, *_ends(use), f"{use.skipped:,}")
    return table


def _ends(use: Use) -> tuple[str, str]:
    """A source's first and last row of a stage: epoch, place of the packing window in its order, row of it."""
    if not use.rows:
        return "", ""
    first, last = (f"{cursor.epoch + 1}.{cursor.turn}.{cursor.row}" for cursor in (use.start, use.last))
    return first, last
