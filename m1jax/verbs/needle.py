"""`m1 needle`: how well a chat model finds a fact in a long text, by the text's length and the fact's depth."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.text.documents import Document, read_documents
from m1jax.text.folder import read_folder
from m1jax.verbs.arguments import Parser, add_json, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 needle --model runs/sft_quickstart --text runs/quickstart/corpus --lengths 256 512")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder, imported or exported")
    parser.add_argument(
        "--text", required=True, metavar="DIR", help="text to hide the fact in: a corpus (its held-out part is used), "
        "or a folder of .txt, .jsonl or .parquet files"
    )  # fmt: skip
    parser.add_argument(
        "--lengths", nargs="+", type=int, required=True, metavar="N", help="tokens of the context, answer included"
    )
    parser.add_argument(
        "--depths", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0], metavar="X",
        help="where the fact stands, 0 before the text to 1 behind it (default: 0 0.25 0.5 0.75 1)",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, default=1, metavar="N", help="facts at each length and depth (default 1)")
    parser.add_argument("--candidates", type=int, default=8, metavar="N", help="answers that are compared (default 8)")
    parser.add_argument("--language", default="en", help="of the fact and the question: en or zh (default: en)")
    parser.add_argument("--system", metavar="TEXT", help="the system message, instead of the chat format's own")
    parser.add_argument("--chat-format", metavar="NAME", help="Baichuan-M1 or ChatML (default: the model's own)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the facts (default 0)")
    parser.add_argument("--plot", default="", metavar="FILE.png", help="draw heat maps")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from m1jax.evaluate import needle
    from m1jax.loading import load
    from m1jax.parallel import jax_setup
    from m1jax.show import needle as shown
    from m1jax.tokenizer import chat as chats

    jax_setup.prepare()
    console = consoles.make(args.json)
    if args.language not in needle.WORDINGS:
        raise UserError(f"--language {args.language!r} is unknown: use one of {', '.join(needle.WORDINGS)}.")
    grid = needle.Grid(
        tuple(sorted(set(args.lengths))),
        tuple(sorted(set(args.depths))),
        args.trials,
        args.candidates,
        needle.WORDINGS[args.language],
        args.seed,
    )
    model, tokenizer = load(Path(args.model), dtype=args.dtype)
    if tokenizer is None:
        raise UserError(f"{args.model} holds no tokenizer.json, so text cannot be read: put it beside config.json.")
    talk = chats.of(tokenizer, args.chat_format)
    console.print(f"Chat format: {talk.origin}.", highlight=False, soft_wrap=True)
    found = []
    for one in needle.run(grid, model, tokenizer, talk, _texts(Path(args.text)), args.system):
        found.append(one)
        console.print(
            f"{one.length:,} tokens, depth {one.depth:.0%}, {one.value}: margin {one.margin:+.2f} nats, "
            f"answer {one.text!r}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    for table in shown.tables(found, grid.candidates):
        console.print(table)
    if args.plot:
        shown.plot(found, grid.candidates, Path(args.plot), f"Needle test of {args.model}")
        console.print(f"Plot in {args.plot}.", soft_wrap=True)
    if args.json:
        print(json.dumps({"model": args.model, **shown.data(found, grid.candidates)}, ensure_ascii=False))


def _texts(folder: Path) -> Iterator[str]:
    """The held-out text of a corpus, or the text of a folder of files."""
    if (folder / "heldout").is_dir():
        items: Iterator[object] = read_documents(folder / "heldout")
    else:
        items = read_folder(folder, ("text",))
    return (item.text for item in items if isinstance(item, Document))
