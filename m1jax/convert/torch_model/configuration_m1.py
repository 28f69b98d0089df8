"""The configuration of a Baichuan-M1 model (arXiv 2502.12671) for transformers: what config.json says."""

from typing import Any

from transformers import PretrainedConfig

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_swa_attention_heads",
    "num_swa_key_value_heads",
    "sliding_window",
    "sliding_window_layers",
    "rope_theta",
    "rms_norm_eps",
    "max_position_embeddings",
)
_FIXED = {"conv_window": 2, "hidden_act": "silu"}


class BaichuanM1Config(PretrainedConfig):
    """The architecture of one Baichuan-M1 model.

    A layer is global (it sees all earlier tokens) or, if its number is in `sliding_window_layers`, a window layer (it
    sees the last `sliding_window` tokens, itself included). Each kind has its own numbers of query heads and of key
    and value heads; head_dim is hidden_size / query heads of the kind.

    Sizes and factors have no default: a missing one raises ValueError by name. `normalize_head` divides each row of
    the output matrix by its length (NormHead); `tie_word_embeddings` makes the embedding serve as output matrix.
    """

    model_type = "baichuan_m1"
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        num_hidden_layers: int | None = None,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        num_swa_attention_heads: int | None = None,
        num_swa_key_value_heads: int | None = None,
        sliding_window: int | None = None,
        sliding_window_layers: list[int] | None = None,
        rope_theta: float | None = None,
        rms_norm_eps: float | None = None,
        max_position_embeddings: int | None = None,
        initializer_range: float = 0.02,
        normalize_head: bool = True,
        conv_window: int = 2,
        hidden_act: str = "silu",
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ):
        """Keys are those of config.json; raises ValueError for a missing key or a value that has no code."""
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_swa_attention_heads = num_swa_attention_heads
        self.num_swa_key_value_heads = num_swa_key_value_heads
        self.sliding_window = sliding_window
        self.sliding_window_layers = sliding_window_layers
        # transformers 5 writes the base of the rotary positions in a mapping.
        self.rope_theta = rope_theta or (kwargs.get("rope_parameters") or {}).get("rope_theta")
        self.rms_norm_eps = rms_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.normalize_head = normalize_head
        self.conv_window = conv_window
        self.hidden_act = hidden_act
        self._check()
        self._refuse(kwargs)
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        # transformers 5 takes these for settings of generation and leaves them out.
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    def heads(self, layer: int) -> tuple[int, int, int]:
        """(query heads, key and value heads, head_dim) of a layer."""
        if self.is_window(layer):
            return (
                self.num_swa_attention_heads,
                self.num_swa_key_value_heads,
                self.hidden_size // self.num_swa_attention_heads,
            )
        return self.num_attention_heads, self.num_key_value_heads, self.hidden_size // self.num_attention_heads

    def is_window(self, layer: int) -> bool:
        """Whether a layer (from 0) sees the last `sliding_window` tokens only."""
        return layer in self.sliding_window_layers

    def _refuse(self, others: dict[str, Any]) -> None:
        """Raises ValueError for keys of other models that ask for mathematics without code here."""
        for key in ("rope_scaling", "rope_parameters"):
            rope = others.get(key)
            if rope is not None:
                rest = {name: value for name, value in rope.items() if name not in ("rope_type", "type")}
                if rope.get("rope_type", rope.get("type")) != "default" or rest not in (
                    {},
                    {"rope_theta": self.rope_theta},
                ):
                    raise ValueError(
                        f"a Baichuan-M1 config says {key} = {rope} and rope_theta = {self.rope_theta}: only plain "
                        f"rotary positions of that base have code."
                    )
        neutral = {"attention_bias": False, "mlp_bias": False, "head_dim": self.hidden_size // self.num_attention_heads}
        for key, value in neutral.items():
            if others.get(key) not in (None, value):
                raise ValueError(f"a Baichuan-M1 config says {key} = {others[key]!r}: only {value!r} has code.")

    def _check(self) -> None:
        for key in _REQUIRED:
            if getattr(self, key) is None:
                raise ValueError(f"a Baichuan-M1 config lacks {key}: it has no default, add it.")
        for key, value in _FIXED.items():
            if getattr(self, key) != value:
                raise ValueError(f"a Baichuan-M1 config says {key} = {getattr(self, key)!r}: only {value!r} has code.")
        if any(not 0 <= layer < self.num_hidden_layers for layer in self.sliding_window_layers):
            raise ValueError(
                f"a Baichuan-M1 config says sliding_window_layers = {self.sliding_window_layers}: they must lie from 0 "
                f"to {self.num_hidden_layers - 1}."
            )
        for query, kv in (
            ("num_attention_heads", "num_key_value_heads"),
            ("num_swa_attention_heads", "num_swa_key_value_heads"),
        ):
            heads, kv_heads = getattr(self, query), getattr(self, kv)
            if self.hidden_size % (2 * heads) or heads % kv_heads:
                raise ValueError(
                    f"a Baichuan-M1 config says {query} = {heads}: hidden_size {self.hidden_size} must be a multiple "
                    f"of twice that, and {kv} = {kv_heads} must divide it."
                )
