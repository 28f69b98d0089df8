"""`m1 pack`: from documents to the rows that a run will read."""

import argparse
import contextlib
import functools
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.config.domains import check_known
from m1jax.errors import UserError
from m1jax.rows.manifest import FORMAT, Manifest, row_path
from m1jax.rows.packing import Documents
from m1jax.rows.packing import pack as pack_documents
from m1jax.rows.store import RowStore
from m1jax.show import console as consoles
from m1jax.show import rows_table
from m1jax.show.progress import ByteBar
from m1jax.text.corpus import check_ids
from m1jax.text.documents import Document, read_documents
from m1jax.train.run.holder import check_free
from m1jax.verbs.arguments import CONFIG, Parser, add_config, config_of, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 pack {CONFIG}")
    add_config(parser)
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME[=DOMAIN]",
        help="pack a registered seqio task or mixture too (default domain: the first of data.domains); may be "
        "repeated; see data.tasks_module",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="threads (default: data.workers, all cores)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read the packed rows and compare their checksums instead"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    if args.verify:
        verify(config_of(args))
        return
    if args.workers < 0:
        raise UserError(f"--workers {args.workers} must be 0 (all cores) or more.")
    named = [task.partition("=") for task in args.task]
    pack(config_of(args), {name: domain for name, _, domain in named}, args.workers)


def pack(config: RunConfig, tasks: Mapping[str, str] | None = None, workers: int = 0) -> None:
    """Packs the run's corpus and seqio tasks into rows of every length; does nothing if they exist.

    `tasks` (name → domain, "" for the first of data.domains) join those of data.tasks; `workers` threads encode and
    pack, 0: as many as data.workers says. Raises UserError where there is neither corpus nor task, no tokenizer, or a
    domain is not in data.domains.
    """
    console = consoles.make()
    data = config.data
    more = {name: domain or data.domains[0] for name, domain in (tasks or {}).items()}
    for name, domain in more.items():
        check_known(f"seqio task {name!r}", domain, data.domains)
    sources, sizes, state = _sources(config, {**data.tasks, **more})
    tokenizer = tokenizers.of_run(config)
    made = artefact.stamp(config.corpus) or {}
    check_ids(config.corpus, made, tokenizer)
    settings = [FORMAT, data.row_lengths, data.packing_window, data.difficulty_buckets, config.seed]
    of = artefact.key(state, tokenizer.fingerprint, *settings)
    if artefact.is_whole(config.rows, "rows", of):
        console.print(f"{config.rows} is already complete.")
        return
    check_free(config.journal, config.rows)
    clock = _Clock()
    with (
        _spool(config.rows, artefact.key(state, tokenizer.fingerprint)) as spool,
        ByteBar(console) as bar,
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
            chat_format=made.get("chat_format", ""),
        )
    console.print(rows_table.table(manifest))
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
    with ByteBar(console) as bar:
        task = bar.add_task("verifying", total=sum(file.bytes for _, _, file in files))
        for name, length, file in files:
            with contextlib.closing(RowStore(row_path(config.rows, length, name), file.rows)) as store:
                store.verify(file.sha256)
            bar.update(task, advance=file.bytes)
    rows = sum(file.rows for _, _, file in files)
    console.print(f"{config.rows}: {len(files)} files, {rows:,} rows, all as their manifest says.")


def _sources(config: RunConfig, tasks: Mapping[str, str]) -> tuple[dict[str, Documents], dict[str, int], list[Any]]:
    """What is packed, by source; the bytes of sources whose size is known; a value that changes with any of them."""
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
        # What a task reads is unknown here: its name and its module's file are used instead.
        state += [sorted(tasks.items()), seqio_tasks.module_state(config.data.tasks_module)]
    return sources, sizes, state


def _documents(config: RunConfig, source: str) -> Iterator[Document]:
    return read_documents(config.corpus / "documents" / f"{source}.parquet")


@contextlib.contextmanager
def _spool(rows: Path, key: str) -> Iterator[Path]:
    """A hidden folder next to the rows for encoded documents; it is deleted when the block ends without an error."""
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
