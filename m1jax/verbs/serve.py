"""`m1 serve`: a server of the OpenAI protocol for a trained model."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from m1jax.config import DTYPES
from m1jax.errors import UserError
from m1jax.verbs.arguments import Parser, add_adapter, example, opened

if TYPE_CHECKING:  # they load JAX
    from m1jax.tokenizer import Tokenizer
    from m1jax.tokenizer.chat import Chat

KEY = "M1_API_KEY"
"""Environment variable of the API key."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 serve --model runs/quickstart", "m1 serve --model exported --host 0.0.0.0 --api-key-file key")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder, imported or exported")
    add_adapter(parser)
    parser.add_argument("--name", help="the model's name for clients (default: the folder's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes any that is free (default: 8000)")
    parser.add_argument("--dtype", choices=DTYPES, help="compute in it (default: as trained or stored)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="split the model over N devices")
    parser.add_argument("--chat-format", metavar="NAME", help="Baichuan-M1 or ChatML (default: the model's own)")
    engine = parser.add_argument_group("the engine")
    engine.add_argument("--max-batch", type=int, default=16, metavar="N", help="requests that generate at once")
    engine.add_argument("--cache-gib", type=float, default=2.0, metavar="X", help="memory of keys and values")
    engine.add_argument(
        "--context", type=int, metavar="N", help="tokens of prompt and answer (default: as many as fit)"
    )
    engine.add_argument(
        "--default-tokens", type=int, default=1024, metavar="N", help="longest answer of a chat that does not say"
    )
    engine.add_argument("--chunk", type=int, default=256, metavar="N", help="tokens of prompts read in one go")
    engine.add_argument("--no-reuse", action="store_true", help="read every prompt from its beginning")
    engine.add_argument(
        "--batch-invariant", action="store_true", help="the same bits whatever else runs; slower with few requests"
    )
    engine.add_argument("--no-warm-up", action="store_true", help="compile when the first requests need it")
    door = parser.add_argument_group("the door")
    door.add_argument("--api-key-file", metavar="FILE", help=f"keys, one a line (or one in the environment: {KEY})")
    door.add_argument("--max-waiting", type=int, default=128, metavar="N", help="requests that may wait for a place")
    door.add_argument("--max-body-mib", type=float, default=8.0, metavar="X", help="the longest body of a request")
    door.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds that an answer may take")
    door.add_argument("--drain", type=float, default=60.0, metavar="S", help="seconds to finish answers at the end")
    door.add_argument("--log-text", action="store_true", help="write prompts and answers into the log")


def run(args: argparse.Namespace) -> None:
    """Runs the verb: serves until SIGTERM or Ctrl-C.

    Raises UserError for a model that cannot be served, limits that hold no request, and an address that is taken.
    """
    from m1jax.generate.room import Limits
    from m1jax.parallel import jax_setup

    try:
        from m1jax.serve import Served, Settings, make
        from m1jax.serve.running import listening
        from m1jax.serve.running import run as serve
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'm1jax[serve]'`.") from error
    for name in ("timeout", "drain", "cache_gib", "max_body_mib"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}.")
    limits = Limits(
        max_batch=args.max_batch,
        cache_bytes=int(args.cache_gib * (1 << 30)),
        context=args.context,
        chunk=args.chunk,
        reuse=not args.no_reuse,
        batch_invariant=args.batch_invariant,
    )
    settings = Settings(
        api_keys=_keys(args.api_key_file),
        hosts=_LOOPBACK if args.host in _LOOPBACK else (),
        max_waiting=args.max_waiting,
        max_body=int(args.max_body_mib * (1 << 20)),
        timeout=args.timeout,
        default_tokens=args.default_tokens,
        log_text=args.log_text,
    )
    bound = listening(args.host, args.port)
    jax_setup.prepare()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("m1jax.serve").setLevel(logging.INFO)
    model, tokenizer = opened(args.model, args.tensor, args.dtype, args.adapter)
    folder = Path(args.model)
    chat, no_chat = _chat(tokenizer, args.chat_format)
    ends = tuple(dict.fromkeys([tokenizer.eos_id, *model.eos_ids]))
    engine = model.online(limits)
    name = args.name or folder.resolve().name
    served = Served(name, engine, tokenizer, chat, ends, _card(folder), no_chat, settings)
    if not args.no_warm_up:
        print("compiling what most requests need (--no-warm-up leaves it to the first of them)", file=sys.stderr)
        engine.warm()
    if args.host not in _LOOPBACK and not settings.api_keys:
        print(f"m1: anyone who reaches {args.host} can use this server: give --api-key-file.", file=sys.stderr)

    def ready() -> None:
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(
            f"{name} is served at http://{shown}:{port} (a chat page at /, the OpenAI protocol at /v1) with a context "
            f"of {engine.room.context} tokens.",
            flush=True,
        )

    serve(make(served), bound, args.drain, ready)


def _keys(file: str | None) -> tuple[str, ...]:
    """The API keys of a file, or the one in the environment; none where neither is given."""
    if file is None:
        return (key,) if (key := os.environ.get(KEY, "").strip()) else ()
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: write one API key a line.") from error
    if not (keys := tuple(line.strip() for line in lines if line.strip())):
        raise UserError(f"{file} holds no API key: write one a line.")
    return keys


def _chat(tokenizer: "Tokenizer", name: str | None) -> tuple["Chat | None", str]:
    """The chat format of a model, or why it has none; raises UserError where the one that is named does not fit."""
    from m1jax.tokenizer import chat as chats

    try:
        return chats.of(tokenizer, name), ""
    except UserError as error:
        if name is not None:
            raise
        return None, str(error).rstrip(".")


def _card(folder: Path) -> str:
    """What is known of a model: README.md in its folder, without its head; else what its run was trained on."""
    from m1jax.convert import config_json
    from m1jax.loading import stored

    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        config = None if (folder / config_json.FILE).is_file() else stored(folder).run
        if config is None:
            return ""
        lines = [f"Trained by m1jax {config.name!r}" + (f", from {config.train.initial}" * bool(config.train.initial))]
        for stage in config.stages:
            mixture = ", ".join(f"{share:.0%} {source}" for source, share in stage.mixture.items())
            lines.append(f"{stage.name}: {stage.tokens:,} tokens in rows of {stage.row_length:,}: {mixture}")
        return "\n".join(lines)
    head = text.split("---\n", 2)
    return (head[2] if text.startswith("---\n") and len(head) == 3 else text).strip()
