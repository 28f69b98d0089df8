"""`m1 pack`: from documents to the rows that a run will read."""

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.rows.manifest import FORMAT, Manifest, row_path
from m1jax.rows.packing import Documents
from m1jax.rows.packing import pack as pack_documents
from m1jax.rows.store import RowStore
from m1jax.show import console as consoles
from m1jax.text.documents import Document, read_documents


def pack(config: RunConfig, tasks: Mapping[str, str] | None = None, workers: int = 0) -> None:
    """Packs the run's corpus and seqio tasks into rows of every length; does nothing if they are there.

    `tasks` (name → domain) join those of data.tasks; `workers` threads encode and pack, 0: as many as data.workers
    says. Raises UserError where there is neither corpus nor task, or no tokenizer.
    """
    console = consoles.make()
    data = config.data
    sources, sizes, state = _sources(config, {**data.tasks, **(tasks or {})})
    tokenizer = tokenizers.of_run(config)
    settings = [FORMAT, data.row_lengths, data.packing_window, data.difficulty_buckets, config.seed]
    of = artefact.key(state, tokenizer.fingerprint, *settings)
    if artefact.is_whole(config.rows, "rows", of):
        console.print(f"{config.rows} is whole already.")
        return
    clock = _Clock()
    with (
        _spool(config.rows, artefact.key(state, tokenizer.fingerprint)) as spool,
        _bar(console) as bar,
        artefact.building(config.rows, "rows", of) as folder,
    ):
        work = (1 + len(set(data.row_lengths))) * sum(sizes.values())
        task = bar.add_task("packing", total=work or None)

        def progress(source: str, phase: str, size: int) -> None:
            clock.count(phase, size)
            bar.update(task, advance=size, description=f"{phase} {source}")

        manifest = pack_documents(
            sources,
            tokenizer,
            folder,
            data.row_lengths,
            data.packing_window,
            config.seed,
            progress,
            difficulty_buckets=data.difficulty_buckets,
            workers=workers or data.workers or os.cpu_count() or 1,
            spool=spool,
        )
    console.print(_rows_table(manifest))
    console.print(f"Encoded {clock.speed('encoded')}, packed {clock.speed('packed')} (of text, for each row length).")
    if rejected := sum(source.rejected for source in manifest.sources.values()):
        console.print(f"Set aside: {rejected:,} documents, each with its reason in {config.rows}/rejected.parquet.")
    console.print(f"Rows in {config.rows}.")


def verify(config: RunConfig) -> None:
    """Reads all packed rows and compares every file with its checksum; raises UserError, naming file and row."""
    console = consoles.make()
    artefact.require(config.rows, "rows", "pack")
    manifest = Manifest.load(config.rows)
    files = [(name, length, file) for name, source in manifest.sources.items() for length, file in source.files.items()]
    with _bar(console) as bar:
        task = bar.add_task("verifying", total=sum(file.bytes for _, _, file in files))
        for name, length, file in files:
            with contextlib.closing(RowStore(row_path(config.rows, length, name), file.rows)) as store:
                store.verify(file.sha256)
            bar.update(task, advance=file.bytes)
    rows = sum(file.rows for _, _, file in files)
    console.print(f"{config.rows}: {len(files)} files, {rows:,} rows, all as their manifest says.")


def _sources(config: RunConfig, tasks: Mapping[str, str]) -> tuple[dict[str, Documents], dict[str, int], list[Any]]:
    """What is packed by source, bytes of those whose size is known, and what changes when any of it does."""
    sources: dict[str, Documents] = {}
    sizes: dict[str, int] = {}
    state: list[Any] = []
    if not tasks or artefact.stamp(config.corpus):
        made = artefact.require(config.corpus, "corpus", "corpus")
        for name, source in made["sources"].items():
            sources[name] = functools.partial(_documents, config, name)
            sizes[name] = source["bytes"]
        state.append(made["key"])
    if tasks:
        from m1jax.text import seqio_tasks  # needs the extra m1jax[data]

        found = seqio_tasks.sources(tasks, config.data.tasks_module)
        sources |= found
        # What a task reads cannot be known from outside: its name and its module's file must do.
        state += [sorted(tasks.items()), seqio_tasks.module_state(config.data.tasks_module)]
    return sources, sizes, state


def _documents(config: RunConfig, source: str) -> Iterator[Document]:
    return read_documents(config.corpus / "documents" / f"{source}.parquet")


@contextlib.contextmanager
def _spool(rows: Path, key: str) -> Iterator[Path]:
    """A hidden folder beside the rows for what is encoded of these inputs; it goes when the block ends well."""
    rows = rows.absolute()
    spool = rows.parent / f".{rows.name}.encoded-{key}"
    for other in rows.parent.glob(f".{rows.name}.encoded-*"):
        if other != spool:
            shutil.rmtree(other, ignore_errors=True)
    yield spool
    shutil.rmtree(spool)


class _Clock:
    """Bytes and seconds of each phase; phases follow one another."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._bytes: dict[str, int] = {}

    def count(self, phase: str, size: int) -> None:
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._bytes[phase] = self._bytes.get(phase, 0) + size
        self._last = now

    def speed(self, phase: str) -> str:
        """Decimal megabytes of text a second."""
        return f"{self._bytes[phase] / 1e6 / max(self._seconds[phase], 1e-9):,.1f} MB/s"


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def _rows_table(manifest: Manifest) -> Table:
    table = Table(title="Packed rows (cut: documents that lie in several pieces)", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("source", "domain"):
        table.add_column(column)
    for column in ("documents", "M tokens", "B/token", "packing windows"):
        table.add_column(column, justify="right")
    for length in manifest.row_lengths:
        for column in (f"of {length:,}", "fill", "cut"):
            table.add_column(column, justify="right", no_wrap=True)
    for name, source in manifest.sources.items():
        row = [name, source.domain, f"{source.documents:,}", f"{source.tokens / 1e6:,.2f}"]
        row += [f"{source.utf8_bytes / source.tokens:.2f}", str(source.packing_windows)]
        for length in manifest.row_lengths:
            file = source.files[length]
            row += [f"{file.rows:,}", f"{file.fill:.2%}", f"{file.cut / source.documents:.1%}"]
        table.add_row(*row)
    table.add_section()
    sources = manifest.sources.values()
    documents, tokens = (sum(getattr(source, name) for source in sources) for name in ("documents", "tokens"))
    windows = sum(source.packing_windows for source in sources)
    total = ["all", "", f"{documents:,}", f"{tokens / 1e6:,.2f}", "", str(windows)]
    for length in manifest.row_lengths:
        files = [source.files[length] for source in sources]
        rows = sum(file.rows for file in files)
        filled = sum(file.fill * file.rows for file in files) / rows
        total += [f"{rows:,}", f"{filled:.2%}", f"{sum(file.cut for file in files) / documents:.1%}"]
    table.add_row(*total)
    return table
