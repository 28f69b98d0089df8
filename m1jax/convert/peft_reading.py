"""A LoRA in PEFT's files, multiplied into the matrices of its model as they are read."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m1jax.config import ModelConfig
from m1jax.convert import adapters, table
from m1jax.convert.source import Checkpoint, converted_to, finite, some
from m1jax.convert.tensor_files import OPENERS, Array, TensorFile
from m1jax.errors import UserError

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_PLAIN = (
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config", "megatron_core", "qalora_group_size",
)  # fmt: skip
"""Keys of adapter_config.json that ask for no more than W + scale · B A; any other that is set may."""
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave W as it is. PiSSA, OLoRA and others take a part out of it, and peft does so
again whenever it loads such an adapter (findings/adapter_changes_base.sh).
"""


class _Factors(NamedTuple):
    a: Array
    """(rank, inputs) float32."""
    b: Array
    """(outputs, rank) float32, times the scale."""


class Adapted(Checkpoint):
    """A checkpoint whose matrices are W + alpha / rank · B A (Hu et al., arXiv 2106.09685), summed in float32.

    With `use_rslora` the scale is alpha / sqrt(rank) (arXiv 2312.03732). Each is rounded once, to the dtype that is
    asked for, or to the tensor's own.
    """

    def __init__(self, folder: Path, adapter: Path):
        """Raises UserError for what `Checkpoint` does, and where `adapter` holds no LoRA that can be merged."""
        super().__init__(folder)
        self._adapter = adapter
        self._settings = _settings(adapter)
        self._weights = _opened(adapter)
        self._factors: dict[str, _Factors] = {}

    @property
    def files(self) -> list[Path]:
        """The files of both."""
        return [*super().files, self._adapter / adapters.CONFIG, *{stored.file for stored in self._stored.values()}]

    @property
    def _stored(self) -> Mapping[str, Any]:
        return self._weights.tensors

    def check(self, config: ModelConfig, rope_base: float, dtype: str | None) -> None:
        """See Checkpoint; also raises UserError where the adapter is of another model."""
        super().check(config, rope_base, dtype)
        matrices = {entry.name.removesuffix(".weight"): entry for entry in table.entries(config) if entry.tensor.inputs}
        names = {name: found for name in self._stored if (found := _NAME.fullmatch(name))}
        if others := self._stored.keys() - names.keys():
            raise self._refused(f"it has {some(others)}, which is no factor of a LoRA")
        modules = {found[1] for found in names.values()}
        if unknown := modules - matrices.keys():
            raise self._refused(f"the model in {self.folder} has no matrix {some(unknown)}")
        if not modules:
            raise self._refused("it has no factors")
        for module in sorted(modules):
            self._factors[f"{module}.weight"] = self._read(module, *matrices[module].shape)

    def _read(self, module: str, outputs: int, inputs: int) -> _Factors:
        rank, scale = _scale(self._settings, module)
        parts = []
        for letter, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            name = f"base_model.model.{module}.lora_{letter}.weight"
            if name not in self._stored:
                raise self._refused(f"{name} is missing")
            found = self._stored[name]
            if found.shape != shape:
                raise self._refused(f"{name} has the shape {found.shape}, the model and the rank ask for {shape}")
            values = self._weights.elements(name, 0, math.prod(shape))
            if not finite(values):
                raise self._refused(f"{name} holds NaN or infinity")
            parts.append(values.astype(np.float32).reshape(shape))
        return _Factors(parts[0], parts[1] * np.float32(scale))

    def elements(self, name: str, start: int, stop: int, dtype: str | None = None) -> Array:
        """See Checkpoint."""
        factors = self._factors.get(name)
        if factors is None:
            return super().elements(name, start, stop, dtype)
        own = super().elements(name, start, stop, "float32")
        columns = factors.a.shape[1]
        first, last = start // columns, -(-stop // columns)
        delta = (factors.b[first:last] @ factors.a).reshape(-1)[start - first * columns : stop - first * columns]
        found = converted_to(own + delta, dtype or self.dtype(name))
        if not finite(found):
            raise self._refused(f"{name} becomes infinite with it")
        return found

    def _refused(self, reason: str) -> UserError:
        return UserError(f"the adapter in {self._adapter} cannot be merged ({reason}): check both folders.")


def _settings(adapter: Path) -> dict[str, Any]:
    """The content of adapter_config.json; raises UserError where it is no LoRA of the plain kind."""
    path = adapter / adapters.CONFIG
    if not path.is_file():
        raise UserError(
            f"{adapter} holds no {adapters.CONFIG}: give the folder that peft or `m1 export --adapter` wrote."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch or save it again.") from error
    usual = {"bias": ("none", None), "init_lora_weights": _BEGINNINGS}
    asked = [name for name in content if name not in _PLAIN and name not in usual and content[name]]
    asked += [name for name, values in usual.items() if content.get(name) not in values]
    if kind != "LORA" or asked:
        what = f"sets {some(asked)}" if kind == "LORA" else f"is of the kind {kind}"
        raise UserError(f"{path} {what}, m1jax merges a plain LoRA: {adapters.MERGE}.")
    for name in ("r", "lora_alpha"):
        if not isinstance(content.get(name), int | float) or not 0 < content[name] < math.inf:
            raise UserError(f"{path} has {name} = {content.get(name)!r}, which must be a number above 0.")
    return dict(content)


def _scale(settings: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of a module: those of the first pattern that its name ends with, as peft looks for it.

    Raises UserError for patterns that are none.
    """

    def own(patterns: str, default: Any) -> Any:
        for pattern, value in (settings.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    try:
        rank, alpha = int(own("rank_pattern", settings["r"])), float(own("alpha_pattern", settings["lora_alpha"]))
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"rank {rank} and alpha {alpha} of {module}")
    except (re.error, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{adapters.CONFIG} has a rank_pattern or alpha_pattern that is no mapping of names to numbers above 0 "
            f"({error}): save it again."
        ) from error
    return rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _opened(adapter: Path) -> TensorFile:
    for name in _FILES:
        if (adapter / name).is_file():
            return OPENERS[Path(name).suffix](adapter / name)
    raise UserError(f"{adapter} holds neither {' nor '.join(_FILES)}: fetch or save it again.")
