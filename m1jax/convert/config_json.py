"""config.json of the reference checkpoint: written from and read into a ModelConfig.

Two keys go beyond the reference: `normalize_head` (false for a plain head; NormHead where it is absent) and `auto_map`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m1jax.config import ModelConfig, check_model
from m1jax.convert import adapters, config_keys
from m1jax.convert.torch_model import AUTO_MAP
from m1jax.errors import UserError

FILE = "config.json"
GENERATION = "generation_config.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden",
    "intermediate_size": "ffn",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "num_swa_attention_heads": "window_num_heads",
    "num_swa_key_value_heads": "window_num_kv_heads",
    "sliding_window": "window",
    "max_position_embeddings": "max_positions",
}
_FACTORS = {"rms_norm_eps": "norm_eps", "initializer_range": "init_std"}
_FIXED = {"conv_window": 2, "hidden_act": "silu"}
_READ = frozenset({*_SIZES, *_FACTORS, *_FIXED, "tie_word_embeddings", "normalize_head", "sliding_window_layers"})


def to_json(config: ModelConfig, rope_base: float, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json; `token_ids` such as eos_token_id go in as they are."""
    return {
        "architectures": ["BaichuanM1ForCausalLM"],
        "auto_map": AUTO_MAP,
        "model_type": "baichuan_m1",
        **{key: getattr(config, name) for key, name in _SIZES.items()},
        **{key: getattr(config, name) for key, name in _FACTORS.items()},
        **_FIXED,
        "tie_word_embeddings": config.tie_embeddings,
        **({} if config.normalize_head else {"normalize_head": False}),
        "sliding_window_layers": [i for i, kind in enumerate(config.layer_kinds) if kind == "window"],
        "rope_theta": rope_base,
        "model_max_length": config.max_positions,
        "torch_dtype": dtype,
        "use_cache": True,
        **token_ids,
    }


def read(folder: Path) -> tuple[ModelConfig, float]:
    """(ModelConfig, RoPE base) of a checkpoint's config.json, dtypes at their defaults.

    Raises UserError where the file is missing or damaged, a key is missing or of the wrong type, a value is one that
    m1jax has no code for, or a key says what no code of m1jax does (m1jax/convert/config_keys.py).
    """
    path = folder / FILE
    adapters.refuse(folder)
    content = _object(path, f"{path} is missing: give the folder of a Hugging Face checkpoint.")
    for key, value in _FIXED.items():
        if _key(content, key, path) != value:
            raise UserError(f"{path} says {key} = {content[key]!r}: m1jax reads {value!r} only.")
    values: dict[str, Any] = {name: _number(content, key, path, int) for key, name in _SIZES.items()}
    values |= {name: _number(content, key, path, float) for key, name in _FACTORS.items()}
    values["tie_embeddings"] = _switch(content, "tie_word_embeddings", path)
    values["normalize_head"] = _switch({"normalize_head": True} | content, "normalize_head", path)
    config = ModelConfig(**values, pattern=_pattern(content, values["num_layers"], path))
    check_model(config)
    base = config_keys.rope_theta(content, path)
    config_keys.check(content, config, _READ, path)
    return config, _number({} if base is None else {"rope_theta": base}, "rope_theta", path, float)


def token_ids(folder: Path) -> dict[str, Any]:
    """The special tokens that a checkpoint's config.json names: each an id, or a list of ids where it has several.

    Raises UserError where one is neither.
    """
    path = folder / FILE
    content = _object(path, f"{path} is missing: give the folder of a Hugging Face checkpoint.")
    found = {key: content[key] for key in TOKEN_IDS if content.get(key) is not None}
    for key, value in found.items():
        _ids(value, key, path)
    return found


def single(ids: Mapping[str, Any]) -> dict[str, int]:
    """The same with one id each: the first of several."""
    return {key: value[0] if isinstance(value, list) else value for key, value in ids.items()}


def ends(token_ids: Mapping[str, Any], generation: Mapping[str, Any] | None, folder: Path) -> tuple[int, ...]:
    """Every id that ends a text, as config.json and generation_config.json of `folder` say: one or several in each.

    Raises UserError where one is no id.
    """
    found: list[int] = []
    for values, name in ((token_ids, FILE), (generation or {}, GENERATION)):
        if values.get("eos_token_id") is not None:
            found += _ids(values["eos_token_id"], "eos_token_id", folder / name)
    return tuple(dict.fromkeys(found))


def _ids(value: Any, key: str, path: Path) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{path} says {key} = {value!r}: it must be a token's id or a list of them.")
    return ids


def generation(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint's generation_config.json holds; None without the file. Raises UserError for a damaged one."""
    path = folder / GENERATION
    return _object(path, "") if path.is_file() else None


def _object(path: Path, missing: str) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch or export it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: give the folder of a Hugging Face checkpoint.")
    return content


def _key(content: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in content:
        raise UserError(f"{path} lacks the key {key}: it has no default, add it.")
    return content[key]


def _number(content: Mapping[str, Any], key: str, path: Path, kind: type) -> Any:
    value = _key(content, key, path)
    allowed = (int, float) if kind is float else (int,)
    # Every number here is a size or a factor: 0 and below cannot be.
    if not isinstance(value, allowed) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise UserError(f"{path} says {key} = {value!r}: it must be a positive {kind.__name__}.")
    return kind(value)


def _switch(content: Mapping[str, Any], key: str, path: Path) -> bool:
    value = _key(content, key, path)
    if not isinstance(value, bool):
        raise UserError(f"{path} says {key} = {value!r}: it must be true or false.")
    return value


def _pattern(content: Mapping[str, Any], num_layers: int, path: Path) -> tuple[str, ...]:
    """The shortest pattern of layer kinds that gives the file's window layers."""
    layers = _key(content, "sliding_window_layers", path)
    if not isinstance(layers, list) or not all(type(i) is int and 0 <= i < num_layers for i in layers):
        raise UserError(
            f"{path} says sliding_window_layers = {layers!r}: it must list layer numbers from 0 to {num_layers - 1}."
        )
    kinds = tuple("window" if i in layers else "global" for i in range(num_layers))
    lengths = range(1, num_layers + 1)
    return next(kinds[:n] for n in lengths if all(kinds[i] == kinds[i % n] for i in range(num_layers)))
