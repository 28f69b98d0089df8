"""Held-out pairs, measured by the objective itself on the live parameters of a training run.

Legend: B rows of a batch, S tokens of a row.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax import artefact
from m1jax.config import RunConfig, StageConfig
from m1jax.errors import UserError
from m1jax.evaluate.heldout import BATCH_TOKENS, placed
from m1jax.parallel import rules
from m1jax.rows.encoding import encode
from m1jax.rows.expand import expand
from m1jax.rows.record import Row
from m1jax.text.corpus import check_ids
from m1jax.text.documents import Document, read_documents
from m1jax.text.set_aside import units
from m1jax.tokenizer import Tokenizer
from m1jax.train.hooks.validation import LOSS
from m1jax.train.objective import Batch, Objective, StageScalars


def rows_of(corpus: Path, tokenizer: Tokenizer, row_length: int, max_tokens: int) -> list[Row]:
    """A row for each held-out pair of a corpus, in order, of at most `max_tokens` tokens in all (one pair at least).

    Raises UserError where nothing is held out that fits, or the pairs were written with another tokenizer.
    """
    check_ids(corpus, artefact.stamp(corpus) or {}, tokenizer)
    folder = corpus / "heldout"
    found: list[Row] = []
    tokens = 0
    for unit in units(read_documents(folder)) if folder.is_dir() else ():
        row = _row(unit, tokenizer, row_length) if isinstance(unit, tuple) else None
        if row is not None and (not found or tokens + len(row.tokens) <= max_tokens):
            found.append(row)
            tokens += len(row.tokens)
    if not found:
        raise UserError(
            f"{folder} holds no pair that fits a row of {row_length} tokens: raise data.heldout_share and make the "
            f"corpus again, or set train.validate_every to 0."
        )
    return found


def _row(documents: Sequence[Document], tokenizer: Tokenizer, row_length: int) -> Row | None:
    batch = encode(documents, tokenizer, np.uint32)
    if not batch.lengths.all() or batch.lengths.sum() > row_length:
        return None
    count = len(documents)
    columns = {name: np.array([d.columns[name] for d in documents], np.int32) for name in documents[0].columns}
    numbers = np.arange(count, dtype=np.uint32), np.zeros(count, np.uint32)
    return Row(row_length, batch.tokens, batch.lengths.astype(np.uint32), *numbers, batch.spans, columns)


def measure(
    config: RunConfig, mesh: Mesh, objective: Objective, rows: Sequence[Row]
) -> Callable[[Any, StageConfig], dict[str, float]]:
    """A function of (parameters, stage) to the loss and every quantity that the objective reports, of all rows.

    All processes call it together.
    """
    shares = mesh.shape["replica"] * mesh.shape["data"] * mesh.shape["fsdp"]
    length = rows[0].row_length
    size = max(1, BATCH_TOKENS // length) * shares
    nothing = np.zeros(0, np.uint32)
    columns = {name: np.zeros(0, np.int32) for name in rows[0].columns}
    empty = Row(length, nothing, nothing, nothing, nothing, columns=columns)
    compiled = jax.jit(objective.terms, out_shardings=rules.replicated(mesh))

    def on_devices(batch: Batch) -> Batch:
        shardings = {n: rules.batch_sharding(mesh, column.axes) for n, column in objective.columns.items()}
        return {n: placed(np.asarray(batch[n]), sharding) for n, sharding in shardings.items()}

    def measured(params: Any, stage: StageConfig) -> dict[str, float]:
        sums: dict[str, tuple[float, float]] = {}
        for first in range(0, len(rows), size):
            some = [*rows[first : first + size]]
            some += [empty] * (size - len(some))
            batch: Any = expand(some, objective.piece_columns)
            terms = compiled(params, on_devices(batch), StageScalars(np.float32(stage.rope_base), np.bool_(False)))
            for name, ratio in {LOSS: terms.loss, **{f"heldout_{n}": r for n, r in terms.reported.items()}}.items():
                total, count = sums.get(name, (0.0, 0.0))
                sums[name] = total + float(ratio.sum), count + float(ratio.denominator)
        # As Ratio.value: an empty bin of a calibration has a sum of 0.
        return {name: total / (count or 1.0) for name, (total, count) in sums.items()}

    return measured
