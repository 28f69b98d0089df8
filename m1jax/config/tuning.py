"""What a run trains of its model: all parameters, those that patterns name, or low-rank factors beside matrices."""

import difflib
import fnmatch
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m1jax.config.stages import bounded
from m1jax.errors import UserError

if TYPE_CHECKING:
    from m1jax.config.schema import ModelConfig

MATRICES = {
    "q": "attention/q_proj",
    "k": "attention/k_proj",
    "v": "attention/v_proj",
    "o": "attention/o_proj",
    "gate": "mlp/gate_proj",
    "up": "mlp/up_proj",
    "down": "mlp/down_proj",
}
"""A layer's matrices by the names that `train.lora.targets` gives them."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank factors beside frozen matrices (Hu et al., arXiv 2106.09685): y = x W + (alpha / rank) (x A) B."""

    rank: int = bounded(0, default=0)
    """Columns of each A and rows of each B; 0: no factors."""
    alpha: float = bounded(0.0, default=32.0)
    targets: tuple[str, ...] = tuple(MATRICES)
    """Matrices that have factors: q, k, v, o, gate, up, down."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers (from 0) whose matrices have factors; empty: all layers."""

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def of_layer(self, layer: int) -> bool:
        """Whether the matrices of a layer have factors."""
        return self.rank > 0 and (not self.layers or layer in self.layers)


@functools.lru_cache(maxsize=16)
def sizes(model: "ModelConfig") -> Mapping[str, int]:
    """Scalars of every parameter by its name: its path in the tree, where a layer is layers/<number from 0>."""
    hidden, tables = model.hidden, model.vocab_size * model.hidden
    found = {"embed/weight": tables, "norm/weight": hidden}
    if not model.tie_embeddings:
        found["head/weight"] = tables
    for i, kind in enumerate(model.layer_kinds):
        heads, kv_heads, head_dim = model.heads(kind)
        of_layer = {
            "input_norm/weight": hidden,
            "post_attention_norm/weight": hidden,
            **dict.fromkeys(("attention/conv_k", "attention/conv_v"), 2 * kv_heads),
            **dict.fromkeys((MATRICES["q"], MATRICES["o"]), hidden * heads * head_dim),
            **dict.fromkeys((MATRICES["k"], MATRICES["v"]), hidden * kv_heads * head_dim),
            **dict.fromkeys((MATRICES["gate"], MATRICES["up"], MATRICES["down"]), hidden * model.ffn),
        }
        found |= {f"layers/{i}/{name}": size for name, size in of_layer.items()}
    return found


def factor_sizes(model: "ModelConfig", lora: LoraConfig) -> dict[str, int]:
    """Scalars of the two factors of every matrix that has some, by the matrix's name."""
    found = {}
    for i, kind in enumerate(model.layer_kinds):
        if not lora.of_layer(i):
            continue
        heads, kv_heads, head_dim = model.heads(kind)
        outputs = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim, "o": heads * head_dim}
        for target in lora.targets:
            other = outputs.get(target, model.ffn)
            found[f"layers/{i}/{MATRICES[target]}"] = lora.rank * (model.hidden + other)
    return found


def matched(model: "ModelConfig", patterns: Iterable[str], key: str = "train.trained") -> frozenset[str]:
    """Names of the parameters that shell patterns select, as `sizes` has them; a pattern may name a group of them.

    `embed`, `layers/3`, `layers/*/mlp`, `*norm*` are patterns. Raises UserError, naming the nearest name, for one that
    matches nothing; `key` is the config key for the error.
    """
    names = list(sizes(model))
    found: set[str] = set()
    for pattern in patterns:
        own = {name for name in names if any(fnmatch.fnmatchcase(name, p) for p in (pattern, f"{pattern}/*"))}
        if not own:
            raise UserError(
                f"config key {key}: {pattern!r} matches no parameter of the model: did you mean "
                f"{_nearest(pattern, names)!r}?"
            )
        found |= own
    return frozenset(found)


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """The parameter, or group of parameters, whose name is nearest to a pattern."""
    known: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        known |= dict.fromkeys("/".join(parts[: n + 1]) for n in range(len(parts)))
        if parts[0] == "layers":
            rest = parts[2:]
            known |= dict.fromkeys("/".join(["layers", "*", *rest[: n + 1]]) for n in range(len(rest)))
    return difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)[0]


def check_lora(model: "ModelConfig", lora: LoraConfig) -> None:
    """Raises UserError where a target or a layer of the adapter is none of the model's."""
    for target in lora.targets:
        if target in MATRICES:
            continue
        remedy = f"did you mean {difflib.get_close_matches(target, MATRICES, n=1, cutoff=0.0)[0]!r}?"
        if target in ("head", "lm_head", "embed", "embed_tokens"):
            remedy = "tables have no factors; train.trained = ['head'] trains the head itself."
        elif target == "W_pack":
            remedy = "its parts are q, k and v."
        raise UserError(f"config key train.lora.targets must hold {', '.join(MATRICES)}, got {target!r}: {remedy}")
    for name in ("targets", "layers"):
        if len(set(getattr(lora, name))) < len(getattr(lora, name)):
            raise UserError(f"config key train.lora.{name} names something twice: {list(getattr(lora, name))}.")
    for layer in lora.layers:
        if not 0 <= layer < model.num_layers:
            raise UserError(
                f"config key train.lora.layers has {layer}, but the model has layers 0 to {model.num_layers - 1}."
            )
    if lora.rank and not lora.alpha:
        raise UserError("config key train.lora.alpha must be above 0: the factors would be multiplied by 0.")


def trained_scalars(model: "ModelConfig", lora: LoraConfig, patterns: Iterable[str]) -> int:
    """Scalars that the optimiser moves: the factors and what the patterns name, or without both all parameters."""
    patterns = tuple(patterns)
    if not lora.rank and not patterns:
        return model.num_parameters
    own = sizes(model)
    return sum(factor_sizes(model, lora).values()) + sum(own[name] for name in matched(model, patterns))
