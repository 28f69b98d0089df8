"""The folder of an imported model: Orbax parameters, what they are, and the tokenizer's files.

- m1jax.json: stamp, whole and from which input
- model.json: config, RoPE base, token ids, generation_config.json, dtypes of the tensors it came from
- parameters/: an Orbax checkpoint (m1jax/convert/parameters.py)
- tokenizer/: the tokenizer's files, where there were any
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from m1jax import artefact
from m1jax.config import ModelConfig, to_dict
from m1jax.config import file as config_file
from m1jax.convert import config_json, parameters, reading, table, tensor_files, tokenizer_files
from m1jax.convert.source import Checkpoint
from m1jax.errors import UserError

KIND = "model"
RECORD = "model.json"
PARAMETERS = "parameters"
TOKENIZER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Record:
    """What belongs to the parameters of an imported model."""

    config: ModelConfig
    rope_base: float
    token_ids: Mapping[str, Any]
    """bos_token_id, eos_token_id, pad_token_id, as far as the checkpoint names them."""
    generation: Mapping[str, Any] | None
    """Content of its generation_config.json."""
    dtypes: Mapping[str, str]
    """Dtypes of checkpoint tensors that differ from those of the parameters that hold them (always wider ones)."""


def leaf_dtypes(checkpoint: Checkpoint, config: ModelConfig, dtype: str | None) -> dict[str, str]:
    """The dtype of each parameter: `dtype`, or the narrowest that holds its tensors exactly."""
    return {leaf.path: reading.leaf_dtype(checkpoint, leaf, dtype) for leaf in table.leaves(config)}


def nbytes(checkpoint: Checkpoint, config: ModelConfig, dtype: str | None) -> int:
    """Bytes of all parameters that `build` will write."""
    dtypes = leaf_dtypes(checkpoint, config, dtype)
    return sum(tensor_files.nbytes(leaf.shape, dtypes[leaf.path]) for leaf in table.leaves(config))


def build(
    checkpoint: Checkpoint,
    config: ModelConfig,
    rope_base: float,
    folder: Path,
    dtype: str | None = None,
    advance: reading.Advance = lambda _: None,
) -> tuple[Record, list[str]]:
    """Fills an existing folder from a checkpoint that `reading.open_checkpoint` has checked in `dtype`.

    Returns what it holds, and sentences about it for people. `advance` is told of bytes read. model.json is written
    last: a folder without it is no model. Raises UserError for a NaN or an infinity, naming tensor and file.
    """
    source, dtypes = checkpoint.folder, leaf_dtypes(checkpoint, config, dtype)
    narrower = {}
    if dtype is None:
        own = {entry.name: checkpoint.dtype(entry.name) for entry in table.entries(config)}
        held = {entry.name: dtypes[entry.paths[0]] for entry in table.entries(config)}
        narrower = {name: own[name] for name in own if own[name] != held[name]}
    record = Record(config, rope_base, config_json.token_ids(source), config_json.generation(source), narrower)
    streams = {leaf.path: reading.stream(checkpoint, leaf, dtypes[leaf.path], advance) for leaf in table.leaves(config)}
    zeros = _Zeros()
    if config.normalize_head:
        name = "embed/weight" if config.tie_embeddings else "head/weight"
        streams[name] = dataclasses.replace(streams[name], blocks=zeros.counted(streams[name].blocks))
    parameters.write(folder / PARAMETERS, streams)
    (folder / TOKENIZER).mkdir()
    ids = config_json.single(record.token_ids)
    if not tokenizer_files.write(source, folder / TOKENIZER, ids, config.max_positions):
        (folder / TOKENIZER).rmdir()
    content = {**dataclasses.asdict(record), "config": to_dict(config)}
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return record, zeros.said()


class _Zeros:
    """Counts the rows of a head that are zeros."""

    def __init__(self) -> None:
        self._count = 0

    def counted(self, blocks: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
        """The same blocks of rows, looked at as they pass."""

        def passing() -> Iterator[Any]:
            for block in blocks():
                self._count += int((~block.any(axis=1)).sum())
                yield block

        return passing

    def said(self) -> list[str]:
        """What they mean in training."""
        if not self._count:
            return []
        return [
            f"{self._count:,} rows of the head are zeros (padding of the vocabulary): NormHead gives them no "
            f"direction, so their logits stay 0 and training leaves them as they are."
        ]


def read(folder: Path) -> Record:
    """What an imported model is; raises UserError where the folder is none, was left half made, or is damaged."""
    path = folder / RECORD
    artefact.require(folder, KIND, "import")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{**content, "config": config_file.model_from_dict(content["config"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): run `m1 import` again.") from error
