"""`m1 curriculum`: what the stages of a run will read of its packed rows, before it runs; and what a step has read."""

import argparse
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.opening import open_curriculum
from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.manifest import DocumentIds, document_ids, index_path
from m1jax.rows.storage import Storage, is_remote
from m1jax.show import console as consoles
from m1jax.show import curriculum_tables as tables
from m1jax.show import mixture_plot
from m1jax.tokenizer import Tokenizer
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_json, config_of, example

if TYPE_CHECKING:  # grain loads JAX: the functions that read rows import it
    from m1jax.curriculum.loader import Served

_STYLES = ("cyan", "yellow", "green", "magenta")
_EXAMPLE_PIECES, _EXAMPLE_CHARACTERS = 6, 160
_INSERTED_CHARACTERS = 60
"""Of a document that is inserted in another one."""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 curriculum {CONFIG} --plot mixture.png", f"m1 curriculum replay {CONFIG} --step 1200")
    add_config(parser)
    parser.add_argument("action", nargs="?", choices=("replay",), help="show the documents of --step instead")
    parser.add_argument("--step", type=int, metavar="N", help="with replay: a step, counted from 1 as in the log")
    parser.add_argument("--examples", type=int, default=1, metavar="N", help="decoded rows of each stage (default: 1)")
    parser.add_argument(
        "--characters", type=int, default=_EXAMPLE_CHARACTERS, metavar="N", help="of each piece, at most (default: 160)"
    )
    parser.add_argument("--plot", default="", metavar="FILE.png", help="draw the mixture over tokens")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    if (args.action is None) != (args.step is None):
        raise UserError("m1 curriculum replay needs --step N, and --step belongs to replay: give both or neither.")
    if args.examples < 0:
        raise UserError(f"--examples {args.examples} must be 0 or more.")
    if args.characters < 2:
        raise UserError(f"--characters {args.characters} must be 2 or more.")
    config = config_of(args)
    if args.step is not None:
        replay(config, args.step, as_json=args.json)
    else:
        show(config, examples=args.examples, plot_path=args.plot, as_json=args.json, characters=args.characters)


def show(
    config: RunConfig,
    *,
    examples: int = 1,
    plot_path: str = "",
    as_json: bool = False,
    characters: int = _EXAMPLE_CHARACTERS,
) -> None:
    """Prints what each stage will read of each source, and `examples` decoded rows from the beginning of each stage.

    Of longer pieces the first and last characters are shown, `characters` in all. `plot_path` names a picture to draw
    of the mixture over tokens. Raises UserError as `open_curriculum` does.
    """
    from m1jax.curriculum.loader import Loader

    console = consoles.make(as_json)
    curriculum, stores = open_curriculum(config)
    loader = Loader(curriculum, stores)
    tokenizer = _tokenizer(config, curriculum) if examples else None
    shown: list[tuple[str, list[dict[str, Any]]]] = []
    for stage, first in zip(config.stages, curriculum.timeline.first_steps, strict=False):
        if tokenizer is not None:
            rows = loader.documents(first)[:examples]
            shown.append((stage.name, _described(config, curriculum, tokenizer, rows)))
    if plot_path:
        mixture_plot.plot(curriculum, config.data.domains, Path(plot_path), f"{config.name}: what is read")
    if as_json:
        found = {"stages": tables.stages(curriculum), "uses": tables.uses(curriculum), "examples": dict(shown)}
        if among := tables.inserted(curriculum):
            found["inserted"] = among
        print(json.dumps(found, ensure_ascii=False))
        return
    console.print(tables.stage_table(curriculum))
    console.print(tables.use_table(curriculum))
    for line in tables.inserted_lines(curriculum):
        console.print(line, highlight=False, soft_wrap=True)
    worst = max(curriculum.quantisation_error(stage) for stage in range(len(config.stages)))
    console.print(f"Shares are met within {worst:.2%} of each (weights are quantised to whole rows of a period).")
    if shown:
        console.print(
            "[document from its token …] text that is learned {text that is only read, and the first token of a piece} "
            "{weight: text of another weight than 1}",
            markup=False,
        )
    for name, described in shown:
        for row in described:
            console.print(f"\n[bold]Stage {name}[/], {_where(row)}")
            _print_pieces(console, row, characters=characters)
    if plot_path:
        console.print(f"Plot in {plot_path}.")


def replay(config: RunConfig, step: int, *, as_json: bool = False) -> None:
    """Prints the documents that step `step` reads, counted from 1 as in the log and in metrics.jsonl, over all hosts.

    Raises UserError as `open_curriculum` does, and for a step that the run does not have.
    """
    from m1jax.curriculum.loader import Loader

    console = consoles.make(as_json)
    curriculum, stores = open_curriculum(config)
    if not 1 <= step <= curriculum.timeline.steps:
        raise UserError(f"step {step} is not in the run, which has steps 1 to {curriculum.timeline.steps}.")
    tokenizer = _tokenizer(config, curriculum)
    rows = _described(config, curriculum, tokenizer, Loader(curriculum, stores).documents(step - 1))
    if as_json:
        print(json.dumps({"step": step, "rows": rows}, ensure_ascii=False))
        return
    stage = curriculum.timeline.stage(step - 1)
    console.print(f"Step {step:,} of {curriculum.timeline.steps:,}, stage {stage.name}: {len(rows)} rows.")
    for row in rows:
        console.print(f"\n[bold]{_where(row)}[/]")
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
    config: RunConfig, curriculum: Curriculum, tokenizer: Tokenizer, rows: Sequence["Served"]
) -> list[dict[str, Any]]:
    """Rows with the identifiers and the text of their pieces.

    `spans` divides a piece by the weight that its tokens have as targets: 0 for those that are no target, as the first
    token of a piece always is; and by the other documents, if any, that are inserted in it (`origin`).
    """
    ids: dict[str, dict[int, DocumentIds]] = {}
    for name in {served.location.source for served in rows}:
        numbers = {document for served in rows if served.location.source == name for document, _, _ in served.pieces}
        ids[name] = _document_ids(config, curriculum.manifest.sources[name].of or name, numbers)
    described = []
    for served in rows:
        # The weight at a token is that of the target which follows it; the last token of a piece has weight 0.
        weights = [0.0, *expand([served.row])["weights"][0].tolist()]
        pieces, start = [], 0
        for document, offset, length in served.pieces:
            tokens = served.row.tokens[start : start + length].tolist()
            pieces.append(
                {
                    "document": ids[served.location.source][document].id,
                    "record_id": ids[served.location.source][document].record_id,
                    "offset": offset,
                    "tokens": length,
                    "text": _text(tokenizer, tokens),
                    "spans": _spans(
                        tokenizer,
                        tokens,
                        weights[start : start + length],
                        _origins(ids[served.location.source][document].inserted, offset, length),
                    ),
                }
            )
            start += length
        padding = served.row.row_length - len(served.row.tokens)
        described.append(
            {"number": served.number, **dataclasses.asdict(served.location), "padding": padding, "pieces": pieces}
        )
    return described


def _spans(
    tokenizer: Tokenizer, tokens: Sequence[int], weights: Sequence[float], origins: Sequence[str]
) -> list[dict[str, Any]]:
    """Runs of tokens of an equal weight that are of one document."""
    found = []
    for (weight, origin), run in itertools.groupby(zip(weights, origins, tokens, strict=True), key=lambda one: one[:2]):
        ids = [token for *_, token in run]
        of = {"origin": origin} if origin else {}
        found.append({"tokens": len(ids), "weight": weight, "text": _text(tokenizer, ids), **of})
    return found


def _origins(inserted: Sequence[Mapping[str, Any]], offset: int, length: int) -> list[str]:
    """The document that each token of a piece is inserted from, "" where it is the piece's own."""
    found = [""] * (offset + length)
    for one in inserted:
        stop = min(one["start"] + one["tokens"], len(found))
        found[one["start"] : stop] = [one["origin"]] * max(0, stop - one["start"])
    return found[offset:]


def _text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids, special tokens by their names."""
    names = {i: text for text, i in tokenizer.special_tokens.items()}
    parts = []
    for special, some in itertools.groupby(ids, names.__contains__):
        together = list(some)
        parts += [names[i] for i in together] if special else [tokenizer.decode(together)]
    return "".join(parts)


def _document_ids(config: RunConfig, source: str, numbers: Iterable[int]) -> dict[int, DocumentIds]:
    if not is_remote(config.rows_address):
        return document_ids(Path(config.rows_address), source, numbers)
    with tempfile.TemporaryDirectory() as folder:
        path = index_path(Path(folder), source)
        path.parent.mkdir(parents=True)
        path.write_bytes(Storage(config.rows_address).read(index_path(Path(), source).as_posix()))
        return document_ids(Path(folder), source, numbers)


def _where(row: dict[str, Any]) -> str:
    return (
        f"row {row['number']:,} (step {row['step'] + 1:,}): {row['source']}, epoch {row['epoch'] + 1}, packing window "
        f"{row['packing_window']:,}, row {row['row']:,} of its file"
    )


def _print_pieces(
    console: Console, row: dict[str, Any], limit: int = _EXAMPLE_PIECES, characters: int = _EXAMPLE_CHARACTERS
) -> None:
    """The pieces of a row, each in its colour; braces around what is not a target or has another weight than 1."""
    for i, piece in enumerate(row["pieces"][:limit]):
        body = Text.assemble(*(_marked(span, _STYLES[i % len(_STYLES)]) for span in piece["spans"]))
        if len(body) > characters:
            half = characters // 2
            body = body[:half] + Text(" […] ", style="dim") + body[-half:]
        own = f" (id {piece['record_id']})" if piece["record_id"] else ""
        head = f"[{piece['document']}{own} from token {piece['offset']:,}, {piece['tokens']:,} tokens] "
        console.print(Text(head, style="dim") + body, soft_wrap=True)
    if (more := len(row["pieces"]) - limit) > 0:
        console.print(Text(f"… and {more} more pieces", style="dim"))
    if row["padding"]:
        console.print(Text(f"and {row['padding']:,} tokens of padding, weight 0", style="dim"))


def _marked(span: dict[str, Any], style: str) -> tuple[str, str]:
    """A span's text and its style."""
    text = _visible(span["text"])
    if "origin" in span:
        shown = text if len(text) <= _INSERTED_CHARACTERS else f"{text[:_INSERTED_CHARACTERS]} […]"
        return f"{{{span['origin']}, {span['tokens']:,} tokens: {shown}}}", "dim reverse"
    if span["weight"] == 1:
        return text, style
    if span["weight"] == 0:
        return "{" + text + "}", "reverse"
    return f"{{{span['weight']:g}: {text}}}", f"{style} underline"


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
