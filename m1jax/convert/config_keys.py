"""Keys of config.json beyond those that a Baichuan-M1 needs: what they may say without changing what is computed.

Programs ignore keys that they do not know, and then compute something else without a word. Here a key is read, or it
says what m1jax computes anyway, or it cannot change the logits; any other that is not null is refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m1jax.config import ModelConfig
from m1jax.errors import UserError

# What a key must say for the model to be the one that m1jax computes; null says the same.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("attention_bias", "qkv_bias", "add_qkv_bias", "use_qkv_bias", "mlp_bias", "lm_head_bias"), False),
    **dict.fromkeys(("bias", "use_bias", "qk_layernorm", "use_qk_norm", "qk_norm", "alibi", "use_alibi"), False),
    **dict.fromkeys(("use_mrope", "rope_traditional", "rope_interleaved"), False),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"), False),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier"), 1),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), 1),
    **dict.fromkeys(("hidden_activation", "activation_function"), "silu"),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 0),
    "pruned_heads": {},
}
# What a program, a training run or a way of sampling is set up with, and what people note down. Keys that begin with
# an underscore are transformers' own notes.
_WITHOUT_EFFECT = frozenset({
    "architectures", "auto_map", "model_type", "dtype", "torch_dtype", "use_cache", "transformers_version",
    "tokenizer_class", "model_max_length", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "unk_token_id", "decoder_start_token_id", "cls_token_id", "mask_token_id", "attn_implementation",
    "gradient_checkpointing", "pretraining_tp", "torchscript", "use_bfloat16", "tf_legacy_loss", "return_dict",
    "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate",
    "chunk_size_feed_forward", "is_decoder", "cross_attention_hidden_size", "finetuning_task", "problem_type",
    "prefix", "task_specific_params", "id2label", "label2id", "num_labels", "attention_dropout", "hidden_dropout",
    "dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "z_loss_weight", "z_loss_coefficient",
    "router_aux_loss_coef", "output_router_logits", "keys_to_ignore_at_inference", "max_length", "min_length",
    "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
})  # fmt: skip
_ROPE = ("rope_parameters", "rope_scaling")
_KINDS = {"global": "full_attention", "window": "sliding_attention"}
# Characters of a value that a message shows.
_SHOWN = 200


def rope_theta(content: Mapping[str, Any], path: Path) -> Any:
    """What config.json says of the base of the rotary positions: by itself, or as transformers 5 writes it.

    None where it says nothing. Raises UserError for positions that are scaled in any way, and for two bases.
    """
    found = {"rope_theta": content["rope_theta"]} if content.get("rope_theta") is not None else {}
    for key in _ROPE:
        value = content.get(key)
        if value is None:
            continue
        kinds = {f"{key}.{kind}": value[kind] for kind in _KINDS.values() if isinstance(value, dict) and kind in value}
        if isinstance(value, dict) and kinds and len(kinds) < len(value):
            raise _refused(key, value, path, "plain rotary positions only")
        for place, settings in (kinds or {key: value}).items():
            if not _plain(settings):
                raise _refused(place, settings, path, "plain rotary positions only")
            if settings.get("rope_theta") is not None:
                found[f"{place}.rope_theta"] = settings["rope_theta"]
    places = list(found)
    for place in places[1:]:
        if found[place] != found[places[0]]:
            raise UserError(
                f"{path} says {places[0]} = {found[places[0]]} and {place} = {found[place]}: m1jax has one base for "
                f"all layers, correct the one or the other."
            )
    return found[places[0]] if places else None


def _plain(settings: Any) -> bool:
    """Whether an entry of rope_scaling or rope_parameters leaves the positions as they are."""
    if not isinstance(settings, dict):
        return False
    kind = settings.get("rope_type", settings.get("type"))
    rest = {name: value for name, value in settings.items() if name not in ("rope_type", "type", "rope_theta")}
    return kind == "default" and all(
        value is None or (name == "partial_rotary_factor" and value == 1) for name, value in rest.items()
    )


def check(content: Mapping[str, Any], config: ModelConfig, read: frozenset[str], path: Path) -> None:
    """Raises UserError where a key asks for another model than `config`, or is unknown; `read` names those in it."""
    _check_agreement(content, config, path)
    done = {*read, *_ROPE, "rope_theta", "head_dim", "layer_types", "original_max_position_embeddings"}
    done |= {"use_sliding_window", *_WITHOUT_EFFECT}
    for key, value in content.items():
        if value is None or key in done or key.startswith("_"):
            continue
        if key in _NEUTRAL:
            if (type(value) is bool and type(_NEUTRAL[key]) is not bool) or value != _NEUTRAL[key]:
                raise _refused(key, value, path, f"{_NEUTRAL[key]!r} only")
        else:
            raise UserError(
                f"{path} says {key} = {_shown(value)}: m1jax does not know this key, and it may change what the model "
                f"computes; where it does not, take it out or set it to null."
            )


def _check_agreement(content: Mapping[str, Any], config: ModelConfig, path: Path) -> None:
    """Keys that say again what others say already."""
    windows = [i for i, kind in enumerate(config.layer_kinds) if kind == "window"]
    head_dim, kinds = content.get("head_dim"), content.get("layer_types")
    longest, sliding = content.get("original_max_position_embeddings"), content.get("use_sliding_window")
    conflict = None
    if head_dim is not None and head_dim != config.hidden // config.num_heads:
        conflict = (
            f"head_dim = {head_dim!r}, but hidden_size = {config.hidden} with num_attention_heads = {config.num_heads} "
            f"gives {config.hidden // config.num_heads}"
        )
    elif kinds is not None and kinds != [_KINDS[kind] for kind in config.layer_kinds]:
        conflict = f"layer_types = {_shown(kinds)}, but sliding_window_layers = {windows}"
    elif sliding is not None and sliding is not True and windows:
        conflict = f"use_sliding_window = {sliding!r}, but sliding_window_layers = {windows}"
    elif longest is not None and longest != config.max_positions:
        conflict = (
            f"original_max_position_embeddings = {longest!r}, but max_position_embeddings = {config.max_positions}"
        )
    if conflict:
        raise UserError(f"{path} says {conflict}: correct the one or the other.")


def _refused(key: str, value: Any, path: Path, only: str) -> UserError:
    return UserError(f"{path} says {key} = {_shown(value)}: m1jax computes {only}, so the logits would be others.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
