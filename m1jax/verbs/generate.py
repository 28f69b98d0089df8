"""`m1 generate`: continues prompts with a trained model."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import Timing
from m1jax.generate.text import Answer, answers
from m1jax.loading import load
from m1jax.parallel import mesh as meshes
from m1jax.show import console as consoles
from m1jax.train.run.faults import StopRequest
from m1jax.verbs import jax_setup

INTERRUPTED = 130
# U+2400 and on picture the control characters of ASCII; the ones above DEL have no pictures of their own.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def run(
    folder: str,
    prompts: Sequence[str],
    prompt_files: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str],
    seed: int,
    tensor: int,
    as_json: bool,
) -> int:
    """Continues each prompt until the document's end, a stop string or `max_new_tokens`; returns the exit status.

    A single prompt's text is printed as it comes, several are continued in one batch and printed when all are done.
    A prompt "-" is read from standard input. Ctrl-C ends with what is there. Raises UserError for a folder without a
    model or tokenizer, an empty prompt, and settings out of range.
    """
    jax_setup.prepare()
    console = consoles.make(as_json)
    texts = [*map(_given, prompts), *map(_read, prompt_files)]
    if not texts:
        raise UserError("there is no prompt: give --prompt TEXT or --prompt-file FILE.")
    sampling.check(len(texts))
    model, tokenizer = load(Path(folder), mesh_of(tensor))
    if tokenizer is None:
        raise UserError(f"{folder} holds no tokenizer.json, so text cannot be read: put it beside config.json.")
    encoded = tokenizer.encode_batch(texts)
    generation = model.start(encoded, max_new_tokens, sampling, seed, tokenizer.eos_id)
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


def mesh_of(tensor: int) -> Mesh | None:
    """A mesh that splits a model over `tensor` devices, None for one; raises UserError where there are fewer."""
    if tensor == 1:
        return None
    devices = jax.devices()
    if not 1 <= tensor <= len(devices):
        raise UserError(f"--tensor {tensor} needs as many devices, there are {len(devices)}: choose a smaller number.")
    return meshes.make(MeshConfig(tensor=tensor), devices[:tensor])


def read_all(pieces: Iterator[list[Answer]], console: Console | None = None) -> tuple[list[Answer], bool]:
    """The answers at their end, or at the moment of a Ctrl-C, and whether there was one.

    Where there is a console the first one's text is printed as it comes.
    """
    found: list[Answer] = []
    with StopRequest() as stop:
        for latest in pieces:
            found = latest
            if console is not None:
                console.print(Text(shown(found[0].new)), end="", soft_wrap=True)
            if stop.requested:
                break
    return found, stop.requested is not None and any(answer.finish_reason is None for answer in found)


def shown(text: str) -> str:
    """`text` for a terminal: control characters, which could move its cursor or rename its window, become pictures."""
    return text.translate(_PICTURES)


def _given(prompt: str) -> str:
    return sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt


def _read(path: str) -> str:
    """A file's text without its last line end, which editors add."""
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it.") from error


def _for_machines(
    prompts: Sequence[str], encoded: Sequence[Sequence[int]], found: Sequence[Answer], timing: Timing
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


def _summary(found: Sequence[Answer], sampling: Sampling, seed: int, timing: Timing, interrupted: bool) -> str:
    how = "greedy" if not sampling.temperature else f"temperature {sampling.temperature}, seed {seed}"
    speed = rate(timing.decode_tokens, timing.decode_seconds)
    return (
        f"{sum(len(answer.tokens) for answer in found)} tokens, {how}{', interrupted' if interrupted else ''}; "
        f"prompt {timing.prefill_seconds:.2f} s, then {speed} tokens/s; compiling took {timing.compile_seconds:.1f} s "
        f"more."
    )
