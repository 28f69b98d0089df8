"""What import and export share: a bar in bytes, room on the disk, and another program's word on the logits."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from m1jax.config import ModelConfig
from m1jax.convert import table
from m1jax.convert.source import Checkpoint
from m1jax.convert.verify import Agreement, Logits, verify_with_mlx, verify_with_torch
from m1jax.errors import UserError
from m1jax.tokenizer import Tokenizer

# Longer than the window of the shipped small model, so that its edge is compared too.
VERIFIED_TOKENS = 320
TOLERANCE = 1e-3
"""Largest difference of a logit, over the largest logit, that passes for agreement in float32."""
# mlx-lm normalises the head in the dtype of the file: in bfloat16 each of its weights is off by up to 2^-9.
ROUNDED_HEAD_TOLERANCE = 1e-2


@contextlib.contextmanager
def bar(console: Console) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A progress bar in bytes: yields a function that adds a line (title, total) and gives what to tell of bytes."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    shown = console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown) as progress:

        def line(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total)
            return lambda count: progress.advance(task, count)

        yield line


def check_room(target: Path, needed: int) -> None:
    """Raises UserError where the disk has no room for `needed` bytes at `target`: found out before one is written."""
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"the disk that holds {place} is full: free some space ({target} needs {needed / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free) and run the same command again."
        )


def prompts(config: ModelConfig, text: str | None, tokenizer: Tokenizer | None, place: Path) -> list[list[int]]:
    """Token ids to compare logits on: those of `text`, or two rows of random ones."""
    if text is None:
        length = min(VERIFIED_TOKENS, config.max_positions)
        # The first ids may be special tokens, which a tokenizer may not hold at all.
        low = min(384, config.vocab_size // 2)
        return np.random.default_rng(0).integers(low, config.vocab_size, (2, length)).tolist()
    if tokenizer is None:
        raise UserError(f"{place} holds no tokenizer, which --prompt needs: leave the prompt out.")
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError("--prompt is empty: give it a sentence.")
    return [list(ids)]


def judge(folder: Path, config: ModelConfig, rows: list[list[int]], ours: Logits) -> dict[str, Any]:
    """What another program finds of a checkpoint's folder, with a sentence; raises UserError where it disagrees.

    mlx-lm where it can read the checkpoint, else the PyTorch model that exports carry, both in float32; so must `ours`.
    """
    tolerance = TOLERANCE
    if config.normalize_head and not config.tie_embeddings and any(folder.glob("*.safetensors")):
        name, found = "mlx-lm", verify_with_mlx(folder, rows, ours)
        if Checkpoint(folder).dtype(table.HEAD.name) != "float32":
            tolerance = ROUNDED_HEAD_TOLERANCE
    else:
        name, found = "The PyTorch model of our exports", verify_with_torch(folder, rows, ours)
    if not found.relative_difference < tolerance:
        raise UserError(
            f"{name} finds logits that differ from ours by {found.relative_difference:.1e} of the largest: nothing was "
            f"written, please report this as a fault of m1jax."
        )
    return {**dataclasses.asdict(found), "agrees": True, "judge": name, "sentence": _sentence(name, found)}


def _sentence(name: str, found: Agreement) -> str:
    return (
        f"{name} loads the folder and agrees: over {found.tokens} tokens its logits differ by at most "
        f"{found.max_difference:.1e} ({found.relative_difference:.1e} of the largest), and the likeliest token is the "
        f"same at {found.greedy_agreement:.1%} of the positions."
    )
