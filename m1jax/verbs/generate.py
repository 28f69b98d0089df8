"""`m1 generate`: continues prompts with a trained model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from m1jax.errors import INTERRUPTED, UserError
from m1jax.show import console as consoles
from m1jax.verbs.arguments import Parser, add_sampling, example, opened, sampling_of

if TYPE_CHECKING:  # they load JAX, which takes seconds: `generate` imports what it needs
    from m1jax.generate.sampling import Sampling
    from m1jax.generate.session import Timing
    from m1jax.generate.text import Answer


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, 'm1 generate --model runs/quickstart --prompt "Asthma is" --temperature 0.8')
    parser.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        default=[],
        help="text to continue, - for standard input; may be repeated",
    )
    parser.add_argument(
        "--prompt-file",
        dest="files",
        action="append",
        default=[],
        metavar="FILE",
        help="file whose text to continue; may be repeated",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    add_sampling(parser, max_new_tokens=64)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    return generate(
        args.model,
        args.prompts,
        args.files,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling_of(args),
        stop=args.stop,
        seed=args.seed,
        tensor=args.tensor,
        adapter=args.adapter,
        as_json=args.json,
    )


def generate(
    folder: str,
    prompts: Sequence[str],
    prompt_files: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: "Sampling",
    stop: Sequence[str],
    seed: int,
    tensor: int,
    as_json: bool,
    adapter: str | None = None,
) -> int:
    """Continues each prompt until the document's end, a stop string or `max_new_tokens`; returns the exit status.

    A single prompt's text is printed as it is generated; several are continued in one batch and printed at the end. A
    prompt "-" is read from standard input. Ctrl-C ends with what was generated. Raises UserError for a folder without
    a model or tokenizer, an empty prompt, and settings out of range.
    """
    from m1jax.generate.text import answers
    from m1jax.parallel import jax_setup
    from m1jax.show.answers import read_all, shown

    jax_setup.prepare()
    console = consoles.make(as_json)
    texts = [*map(_given, prompts), *map(_read, prompt_files)]
    if not texts:
        raise UserError("there is no prompt: give --prompt TEXT or --prompt-file FILE.")
    sampling.check(len(texts))
    model, tokenizer = opened(folder, tensor, adapter=adapter)
    encoded = tokenizer.encode_batch(texts)
    generation = model.start(encoded, max_new_tokens, sampling, seed, [tokenizer.eos_id, *model.eos_ids])
    pieces = answers(generation, tokenizer, stop)
    if as_json:
        found, interrupted = read_all(pieces)
        print(json.dumps(_for_machines(texts, encoded, found, generation.session.timing), ensure_ascii=False))
        return INTERRUPTED if interrupted else 0
    if len(texts) == 1:
        console.print(Text(shown(texts[0]), "bold"), end="", soft_wrap=True)
        found, interrupted = read_all(pieces, console)
        console.print("\n")
    else:
        found, interrupted = read_all(pieces)
        for text, answer in zip(texts, found, strict=True):
            console.print(Text.assemble((shown(text), "bold"), shown(answer.text.rstrip())), soft_wrap=True)
            console.print()
    console.print(_summary(found, sampling, seed, generation.session.timing, interrupted), style="dim")
    return INTERRUPTED if interrupted else 0


def _given(prompt: str) -> str:
    return sys.stdin.read().removeprefix("\ufeff").removesuffix("\n") if prompt == "-" else prompt


def _read(path: str) -> str:
    """A file's text without a byte-order mark and without its last line end, which editors add."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it.") from error


def _for_machines(
    prompts: Sequence[str], encoded: Sequence[Sequence[int]], found: Sequence["Answer"], timing: "Timing"
) -> list[dict[str, Any]]:
    batch = {
        "prompts": len(prompts),
        "prefill_tokens_per_second": rate(timing.prefill_tokens, timing.prefill_seconds),
        "decode_tokens_per_second": rate(timing.decode_tokens, timing.decode_seconds),
        "compile_seconds": round(timing.compile_seconds, 3),
    }
    return [
        {
            "prompt": prompt,
            "text": answer.text,
            "tokens": answer.tokens,
            "finish_reason": answer.finish_reason or "interrupted",
            "prompt_tokens": len(ids),
            "new_tokens": len(answer.tokens),
            "batch": batch,
        }
        for prompt, ids, answer in zip(prompts, encoded, found, strict=True)
    ]


def rate(tokens: int, seconds: float) -> float | None:
    """Tokens a second, None where nothing was measured."""
    return round(tokens / seconds, 1) if seconds else None


def _summary(found: Sequence["Answer"], sampling: "Sampling", seed: int, timing: "Timing", interrupted: bool) -> str:
    how = "greedy" if not sampling.temperature else f"temperature {sampling.temperature}, seed {seed}"
    speed = rate(timing.decode_tokens, timing.decode_seconds)
    return (
        f"{sum(len(answer.tokens) for answer in found)} tokens, {how}{', interrupted' if interrupted else ''}; "
        f"prompt {timing.prefill_seconds:.2f} s, then {speed} tokens/s; compiling took {timing.compile_seconds:.1f} s "
        f"more."
    )
