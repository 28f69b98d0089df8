"""`m1 tokenizer report`: how well the run's tokenizer fits text that it was not trained on, compared with others."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.config.domains import ordered
from m1jax.errors import UserError
from m1jax.evaluate import tasks
from m1jax.show import console as consoles
from m1jax.show import figures
from m1jax.text import sampling
from m1jax.text.documents import read_documents
from m1jax.text.sources.terms import term_lists
from m1jax.tokenizer import SpecialIds
from m1jax.tokenizer.measure import Compression, EncodeArrays, compression, term_counts, used_ids
from m1jax.tokenizer.parts import order
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_json, config_of, example

USED_BYTES = 20_000_000
"""Training text over which the ids that occur are counted."""
LANGUAGES = {"en": "English", "zh": "Chinese"}
QUESTIONS = "MedQA + PubMedQA"
_ASKED = ("medqa", "pubmedqa")
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A tokenizer to be measured."""

    name: str
    encode: EncodeArrays
    vocab_size: int


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 tokenizer report {CONFIG} --against other/tokenizer.json")
    add_config(parser)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="TOKENIZER",
        help="another tokenizer: tokenizer.json, SentencePiece model or name of a tiktoken encoding; may be repeated",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    report(config_of(args), args.against, args.json)


def report(config: RunConfig, against: Sequence[str], as_json: bool) -> None:
    """Measures the run's tokenizer, one of its first domain and a joint one of its size, and those of `against`.

    `against` names files (tokenizer.json, SentencePiece model), folders or tiktoken encodings. Writes report.json and
    compression.png. Raises UserError where the corpus or a tokenizer is missing, or matplotlib is not installed.
    """
    console = consoles.make(as_json)
    made = artefact.require(config.corpus, "corpus", "corpus")
    own = tokenizers.of_run(config)
    candidates = [Candidate("this run", own.encode_arrays, own.vocab_size)]
    candidates += [_existing(name) for name in against]
    candidates += _trained(config, made, own.vocab_size, console)
    texts, by_source = _heldout(config)
    domains = sorted({source["domain"] for source in made["sources"].values()})
    terms = term_lists(read_documents(config.corpus / "documents", config.corpus / "heldout"))
    sample = list(sampling.texts(config.corpus, made["sources"], domains, USED_BYTES))
    lines = []
    for candidate in candidates:
        with console.status(f"measuring {candidate.name}"):
            lines.append(_measured(candidate, texts, by_source, terms, sample))
    folder = config.tokenizer_report
    (folder / "report.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(lines, folder / "compression.png")
    if as_json:
        print(json.dumps(lines, ensure_ascii=False))
        return
    for table in (_text_table(lines), _term_table(lines)):
        console.print(table)
    console.print(f"Plot in {folder / 'compression.png'}, sources one by one in {folder / 'report.json'}.")


def _existing(name: str) -> Candidate:
    """The tokenizer at a path, or the tiktoken encoding of that name."""
    path = Path(name)
    if path.exists() or path.suffix in (".json", ".model") or len(path.parts) > 1:
        # No special token is measured: any ids will do.
        found = tokenizers.load(path, SpecialIds(0, 0, 0))
        return Candidate(
            path.parent.name if path.name == "tokenizer.json" else path.name, found.encode_arrays, found.vocab_size
        )
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        known = ", ".join(tiktoken.list_encoding_names())
        raise UserError(f"{name} is neither a file nor an encoding of tiktoken (it has: {known}): correct --against.")
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # a request that failed is an OSError too
        raise UserError(
            f"the encoding {name} of tiktoken cannot be fetched ({type(error).__name__}): allow the network, or "
            f"put its file into the folder that TIKTOKEN_CACHE_DIR names."
        ) from error

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

    return Candidate(name, encode, encoding.n_vocab)


def _trained(config: RunConfig, made: Mapping[str, Any], vocab_size: int, console: Console) -> list[Candidate]:
    """Tokenizers of the same size, of the first domain's text alone and of all text; kept for later reports."""
    domains = ordered((source["domain"] for source in made["sources"].values()), config.data.domains)
    first = order(config, domains)[0]
    wanted = {f"{first} only": [first], "joint": domains} if len(domains) > 1 else {"joint": domains}
    found = []
    for name, chosen in wanted.items():
        place = config.tokenizer_report / name.replace(" ", "-")
        of = artefact.key(made["key"], vocab_size, config.data.tokenizer_bytes, chosen)
        if not artefact.is_whole(place, "tokenizer", of):
            with console.status(f"training {name} for comparison"), artefact.building(place, "tokenizer", of) as folder:
                texts = sampling.texts(config.corpus, made["sources"], chosen, config.data.tokenizer_bytes)
                tokenizers.train(texts, vocab_size).save(folder)
        loaded = tokenizers.load(place)
        found.append(Candidate(name, loaded.encode_arrays, loaded.vocab_size))
    return found


def _heldout(config: RunConfig) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Texts that no tokenizer was trained on: by language and domain, with the questions; and by source."""
    by_kind: dict[tuple[str, str], list[str]] = {}
    sources: dict[str, list[str]] = {}
    for document in read_documents(config.corpus / "heldout"):
        by_kind.setdefault((document.language, document.domain), []).append(document.text)
        sources.setdefault(document.source, []).append(document.text)
    domains = ordered((domain for _, domain in by_kind), config.data.domains)
    kinds = {
        f"{LANGUAGES.get(language, language)} {domain}": by_kind[language, domain]
        for language, domain in sorted(by_kind, key=lambda kind: (kind[0], domains.index(kind[1])))
    }
    questions = config.corpus / "evaluation"
    if questions.is_dir():
        asked = [task for task in tasks.TASKS if task.name in _ASKED]
        kinds[QUESTIONS] = [item.text for task in asked for item in tasks.load(task, questions).items]
    return kinds, sources


def _measured(
    candidate: Candidate,
    texts: Mapping[str, Sequence[str]],
    by_source: Mapping[str, Sequence[str]],
    terms: Mapping[str, Sequence[str]],
    sample: Sequence[str],
) -> Line:
    encode = candidate.encode
    counts = {title: term_counts(encode, some) for title, some in terms.items()}
    return {
        "name": candidate.name,
        "vocab_size": candidate.vocab_size,
        "texts": {kind: _entry(compression(encode, some)) for kind, some in texts.items()},
        "sources": {source: _entry(compression(encode, some)) for source, some in by_source.items()},
        "terms": {
            title: {
                **dataclasses.asdict(count),
                "single_token_share": count.single_token_share,
                "tokens_per_term": count.tokens_per_term,
            }
            for title, count in counts.items()
        },
        "used_share": used_ids(encode, sample) / candidate.vocab_size,
    }


def _entry(found: Compression) -> Line:
    ratios = {"bytes_per_token": found.bytes_per_token, "tokens_per_character": found.tokens_per_character}
    return {**dataclasses.asdict(found), **ratios}


def _text_table(lines: Sequence[Line]) -> Table:
    table = Table(title="Held-out text: bytes a token (more is better), tokens a character (less is better)")
    table.add_column("tokenizer")
    table.add_column("ids", justify="right")
    for kind in lines[0]["texts"]:
        table.add_column(kind, justify="right")
    table.add_column("ids that occur", justify="right")
    for line in lines:
        cells = [f"{e['bytes_per_token']:.2f}  {e['tokens_per_character']:.3f}" for e in line["texts"].values()]
        table.add_row(line["name"], f"{line['vocab_size']:,}", *cells, f"{line['used_share']:.1%}")
    return table


def _term_table(lines: Sequence[Line]) -> Table:
    table = Table(title="Terms: share that is one token (of English terms their words), tokens a term")
    table.add_column("tokenizer")
    for title, found in lines[0]["terms"].items():
        table.add_column(f"{title}, {found['terms']:,}", justify="right")
    for line in lines:
        cells = [
            f"{found['single_token_share']:.1%}  {found['tokens_per_term']:.2f}" for found in line["terms"].values()
        ]
        table.add_row(line["name"], *cells)
    return table


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draws bytes a token by kind of text and tokenizer; raises UserError where matplotlib is not installed."""
    kinds = list(lines[0]["texts"])
    figure = figures.make(9, 4.5)
    axes = figure.add_subplot()
    width = 0.8 / len(lines)
    for place, line in enumerate(lines):
        heights = [line["texts"][kind]["bytes_per_token"] for kind in kinds]
        middle = np.arange(len(kinds)) + (place - (len(lines) - 1) / 2) * width
        label = f"{line['name']} ({line['vocab_size']:,} ids)"
        bars = axes.bar(middle, heights, width * 0.92, label=label, color=f"C{place}")
        axes.bar_label(bars, fmt="%.2f", fontsize=7, rotation=90 if len(lines) > 3 else 0, padding=2)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="bytes a token, held out", title="Compression: higher is better")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.grid(axis="y", alpha=0.3)
    figures.save(figure, path)
