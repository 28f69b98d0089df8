"""`m1 tokenizer train`, `m1 pack` and `m1 curriculum`: from documents to the rows that a run will read."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from m1jax import artefact
from m1jax.config import RunConfig
from m1jax.data.curriculum import Curriculum
from m1jax.data.documents import Document, read_documents
from m1jax.data.manifest import Manifest, Stores, open_stores
from m1jax.data.packing import pack as pack_documents
from m1jax.data.tokenizer import Tokenizer
from m1jax.data.tokenizer import train as train_bpe
from m1jax.errors import UserError
from m1jax.recipes import console as consoles

TOKENIZER_BYTES = 1_500_000
"""Text of each source that the tokenizer learns from: more changes little and takes longer."""


def train_tokenizer(config: RunConfig) -> None:
    """Trains the run's tokenizer on its corpus; does nothing if it is there. Raises UserError without a corpus."""
    console = consoles.make()
    made = artefact.require(config.corpus, "corpus", "corpus")
    of = artefact.key(made["key"], config.data.vocab_size, TOKENIZER_BYTES)
    if artefact.is_whole(config.tokenizer, "tokenizer", of):
        console.print(f"{config.tokenizer} is whole already.")
        return
    texts = (text for source in made["sources"] for text in _beginning(_source_file(config, source)))
    with console.status("training the tokenizer"), artefact.building(config.tokenizer, "tokenizer", of) as folder:
        tokenizer = train_bpe(texts, config.data.vocab_size)
        tokenizer.save(folder)
    size = f"{tokenizer.vocab_size:,} tokens (fingerprint {tokenizer.fingerprint})"
    console.print(f"Byte-level BPE of {size} in {config.tokenizer}.")


def _source_file(config: RunConfig, source: str) -> Path:
    return config.corpus / "documents" / f"{source}.parquet"


def _beginning(path: Path) -> Iterator[str]:
    """Texts of a source, evenly over the file, up to TOKENIZER_BYTES."""
    total = sum(len(document.text.encode()) for document in read_documents(path))
    stride = max(1, round(total / TOKENIZER_BYTES))
    return (document.text for document in itertools.islice(read_documents(path), 0, None, stride))


def pack(config: RunConfig) -> None:
    """Packs the run's corpus into rows of every length; does nothing if they are there.

    Raises UserError without a corpus or tokenizer.
    """
    console = consoles.make()
    made = artefact.require(config.corpus, "corpus", "corpus")
    tokenizer = Tokenizer.load(config.tokenizer)
    data = config.data
    of = artefact.key(made["key"], tokenizer.fingerprint, data.row_lengths, data.window_documents, config.seed)
    if artefact.is_whole(config.rows, "rows", of):
        console.print(f"{config.rows} is whole already.")
        return
    sources = {name: functools.partial(_documents, config, name) for name in made["sources"]}
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
        artefact.building(config.rows, "rows", of) as folder,
    ):
        tasks = {name: bar.add_task(name, total=None) for name in sources}

        def progress(source: str, done: int, total: int) -> None:
            bar.update(tasks[source], completed=done, total=total or None)

        manifest = pack_documents(
            sources, tokenizer, folder, data.row_lengths, data.window_documents, config.seed, progress
        )
    console.print(_rows_table(manifest))
    console.print(f"Rows in {config.rows}.")


def _documents(config: RunConfig, source: str) -> Iterator[Document]:
    return read_documents(_source_file(config, source))


def _rows_table(manifest: Manifest) -> Table:
    table = Table(title="Packed rows")
    for column in ("source", "domain"):
        table.add_column(column)
    for column in ("documents", "tokens", "bytes/token", "windows"):
        table.add_column(column, justify="right")
    for length in manifest.row_lengths:
        table.add_column(f"rows of {length:,}", justify="right")
        table.add_column("fill", justify="right")
    for name, source in manifest.sources.items():
        row = [name, source.domain, f"{source.documents:,}", f"{source.tokens:,}"]
        row += [f"{source.utf8_bytes / source.tokens:.2f}", str(source.windows)]
        for length in manifest.row_lengths:
            row += [f"{source.files[length].rows:,}", f"{source.files[length].fill:.2%}"]
        table.add_row(*row)
    return table


def open_curriculum(config: RunConfig) -> tuple[Curriculum, Stores]:
    """The run's curriculum over its packed rows, and the row stores that it reads.

    Raises UserError for missing or broken rows, a mixture that names no source, or a tokenizer larger than the model.
    """
    artefact.require(config.rows, "rows", "pack")
    manifest = Manifest.load(config.rows)
    if manifest.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the rows in {config.rows} use {manifest.vocab_size} tokens, but model.vocab_size is "
            f"{config.model.vocab_size}: raise it, or train a smaller tokenizer and pack again."
        )
    curriculum = Curriculum(config.stages, manifest, config.seed)
    return curriculum, open_stores(config.rows, manifest, curriculum.used)


def show_curriculum(config: RunConfig, as_json: bool) -> None:
    """Prints what each stage will read of each source."""
    console = consoles.make(as_json)
    curriculum, _ = open_curriculum(config)
    uses = curriculum.table()
    if as_json:
        print(json.dumps([dataclasses.asdict(use) for use in uses]))  # noqa: T201
        return
    table = Table(title=f"Curriculum: {curriculum.steps:,} steps, {curriculum.first_row(curriculum.steps):,} rows")
    for column in ("stage", "source", "domain"):
        table.add_column(column)
    for column in ("share", "rows", "tokens", "epochs", "rows left out"):
        table.add_column(column, justify="right")
    for before, use in zip([None, *uses], uses, strict=False):
        if before and before.stage != use.stage:
            table.add_section()
        row = [f"{use.share:.1%}", f"{use.rows:,}", f"{use.tokens:,}", f"{use.epochs:.2f}", f"{use.skipped:,}"]
        table.add_row(use.stage if not before or before.stage != use.stage else "", use.source, use.domain, *row)
    console.print(table)
    worst = max(curriculum.quantisation_error(stage) for stage in range(len(config.stages)))
    console.print(f"Shares are met within {worst:.2%} of each (weights are quantised to whole rows of a period).")
