"""Baichuan-M1 (arXiv 2502.12671) in plain PyTorch, for transformers: the model that a checkpoint's folder carries.

A decoder of layers of two kinds, global and sliding window, each with its own head counts. What sets it apart:

* a short convolution on keys and values (KV Shifting Attention, arXiv 2411.19574): per head, k_t becomes
  w[0] k_{t-1} + w[1] k_t before the rotary positions, and v_t likewise;
* NormHead: each row of the output matrix is divided by its length at every forward;
* all state of generation lies in the cache, `BaichuanM1Cache`, none on the modules.

A row may hold padding anywhere (`attention_mask` 0): positions count real tokens, and nothing sees padding. A row may
hold several documents: where `position_ids` say 0 a document begins, and attention and convolution stop there.

Legend: B batch, S new tokens, T columns that a layer can see (cached and new), H query heads, K key and value heads,
D head_dim, E hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .cache_m1 import BaichuanM1Cache, Neighbours, Tokens, neighbours, place, visible
from .configuration_m1 import BaichuanM1Config

# What transformers call the cache in outputs and in `generate`: "cache" from 5.24 on.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def rotary(positions_BS: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, S, D/2) float32 of position x base^(-2i/D) (RoPE, arXiv 2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    angle = positions_BS[:, None, :, None].float() * frequencies.float().to(positions_BS.device)
    return angle.cos(), angle.sin()


def rotate(x_BHSD: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (i, i + D/2) by their angles; computed in float32, returned in x's dtype."""
    cos, sin = cos_sin
    low, high = x_BHSD.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x_BHSD.dtype)


def convolve(
    x_BKSD: Tensor, weight: Tensor, last_BK1D: Tensor | None, near: Neighbours | None
) -> tuple[Tensor, Tensor]:
    """(w[0] x_{t-1} + w[1] x_t, the last x) for weights (1, 1, K, 1, 2); computed in float32, returned in x's dtype.

    `last` is x before the first new token, None for zeros; `near` says who comes before whom, None in a row without
    padding that holds one document.
    """
    if last_BK1D is None:
        last_BK1D = torch.zeros_like(x_BKSD[:, :, :1])
    all_BKTD = torch.cat([last_BK1D, x_BKSD], dim=2)
    if near is None:
        before_BKSD, last_BK1D = all_BKTD[:, :, :-1], all_BKTD[:, :, -1:]
    else:
        before_BKSD = torch.where(near.first[:, None, :, None], 0, _columns(all_BKTD, near.before))
        last_BK1D = _columns(all_BKTD, near.last)
    weight_K11 = weight.float().view(-1, 2, 1, 1).unbind(dim=1)
    mixed = weight_K11[0] * before_BKSD.float() + weight_K11[1] * x_BKSD.float()
    return mixed.to(x_BKSD.dtype), last_BK1D


def _columns(x_BKTD: Tensor, index_BS: Tensor) -> Tensor:
    """Columns of each row by number."""
    _, K, _, D = x_BKTD.shape
    return x_BKTD.gather(2, index_BS[:, None, :, None].expand(-1, K, -1, D))


class BaichuanM1RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467): variance in float32, cast to the weight's dtype, times the weight."""

    def __init__(self, hidden: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x_BSE: Tensor) -> Tensor:
        """Same shape and dtype."""
        wide = x_BSE.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (normed.to(self.weight.dtype) * self.weight).to(x_BSE.dtype)


class BaichuanM1Attention(nn.Module):
    """Grouped attention with a short convolution on keys and values."""

    def __init__(self, config: BaichuanM1Config, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.kv_heads, self.head_dim = config.heads(layer_idx)
        # Rows: queries, keys, values, each head after head.
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.W_pack = nn.Linear(config.hidden_size, rows, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.conv_k = nn.Parameter(torch.empty(1, 1, self.kv_heads, 1, 2))
        self.conv_v = nn.Parameter(torch.empty(1, 1, self.kv_heads, 1, 2))

    def forward(
        self,
        x_BSE: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        mask: Tensor | None,
        near: Neighbours | None,
        cache: BaichuanM1Cache | None,
        keep: int,
    ) -> Tensor:
        """(B, S, E); `mask` None lets a token see all cached ones and the new ones up to itself."""
        B, S, _ = x_BSE.shape
        heads = self.W_pack(x_BSE).view(B, S, -1, self.head_dim).transpose(1, 2)
        q, raw_k, raw_v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        layer = None if cache is None else cache.layers[self.layer_idx]
        last_k, last_v = (None, None) if layer is None else (layer.last_key, layer.last_value)
        k, last_k = convolve(raw_k, self.conv_k, last_k, near)
        v, last_v = convolve(raw_v, self.conv_v, last_v, near)
        q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        if layer is not None:
            k, v = layer.extend(k, v, last_k, last_v, keep)
        if mask is None:
            out = scaled_dot_product_attention(q, k, v, is_causal=S > 1, enable_gqa=self.heads != self.kv_heads)
        else:  # the fused kernels that take a mask want as many key heads as query heads
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(B, S, -1))


class BaichuanM1MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: BaichuanM1Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BSE: Tensor) -> Tensor:
        """Same shape and dtype."""
        return self.down_proj(silu(self.gate_proj(x_BSE)) * self.up_proj(x_BSE))


class BaichuanM1DecoderLayer(GradientCheckpointingLayer):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: BaichuanM1Config, layer_idx: int):
        super().__init__()
        self.input_layernorm = BaichuanM1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = BaichuanM1Attention(config, layer_idx)
        self.post_attention_layernorm = BaichuanM1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = BaichuanM1MLP(config)

    def forward(self, x_BSE: Tensor, *args: Any) -> Tensor:
        """Arguments as of BaichuanM1Attention."""
        x_BSE = x_BSE + self.self_attn(self.input_layernorm(x_BSE), *args)
        return x_BSE + self.mlp(self.post_attention_layernorm(x_BSE))


class BaichuanM1PreTrainedModel(PreTrainedModel):
    """What transformers must know of the model."""

    config_class = BaichuanM1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanM1DecoderLayer"]  # noqa: RUF012 - transformers' own form, here and below
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Matrices normal, convolutions a softmax of two normals (paper of the convolution), norms 1."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, BaichuanM1RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, BaichuanM1Attention):
            for weight in (module.conv_k, module.conv_v):
                # transformers 5 calls this after loading too, and marks what was loaded; `nn.init` heeds the mark.
                if not getattr(weight, "_is_hf_initialized", False):
                    with torch.no_grad():
                        weight.copy_(torch.randn_like(weight).softmax(dim=-1))


class BaichuanM1Model(BaichuanM1PreTrainedModel):
    """Embedding, layers and final norm: tokens to hidden states."""

    def __init__(self, config: BaichuanM1Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BaichuanM1DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = BaichuanM1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BaichuanM1Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: BaichuanM1Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Hidden states (B, S, E) after the final norm, and the cache with the new tokens.

        Args:
            input_ids: (B, S) tokens that follow those in `past_key_values`.
            attention_mask: (B, cached + S), 0 for padding; None where no new token is padding.
            position_ids: (B, S) or (1, S); by default counted over real tokens. A 0 begins a new document.
            past_key_values: a BaichuanM1Cache, which is changed in place; a new one is made if `use_cache`.
            inputs_embeds: (B, S, E) embeddings in place of `input_ids`.
            use_cache: by default what the config says, and False in training.
            output_hidden_states: also returns the embeddings and what each layer gives, the last one normed.
            output_attentions: must not be True: fused attention never forms the weights.
            return_dict: False for a tuple.
            cache: another name of `past_key_values`, which transformers use from 5.24 on.
            kwargs: what transformers pass to other models; not used.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds.")
        if output_attentions:
            raise ValueError("output_attentions is not available: fused attention never forms the weights.")
        x_BSE = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = _checked(cache if past_key_values is None else past_key_values)
        if self.gradient_checkpointing and self.training:
            cache, use_cache = None, False  # a layer run twice would write its cache twice
        if cache is None and use_cache:
            cache = BaichuanM1Cache(self.config)

        past = None if cache is None else cache.tokens
        tokens, plain = place(tuple(x_BSE.shape[:2]), x_BSE.device, attention_mask, position_ids, past)
        if cache is not None:
            held = cache.held
            cache.append(tokens, plain)
            plain, keys, keep = cache.plain, cache.tokens, cache.reachable()
            cache.held = keep
        else:
            held, keys, keep = 0, tokens, 0
        near = None if plain else neighbours(tokens)
        kinds = {self.config.is_window(i): self.config.heads(i)[2] for i in range(len(self.layers))}
        cos_sin = {
            kind: rotary(tokens.positions[:1] if plain else tokens.positions, D, self.config.rope_theta)
            for kind, D in kinds.items()
        }
        masks = {kind: self._mask(keys, x_BSE.shape[1], held, plain, kind) for kind in kinds}

        states = [x_BSE]
        for i, layer in enumerate(self.layers):
            kind = self.config.is_window(i)
            x_BSE = layer(x_BSE, cos_sin[kind], masks[kind], near, cache, keep)
            states.append(x_BSE)
        states[-1] = x_BSE = self.norm(x_BSE)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BaseModelOutputWithPast(x_BSE, cache, tuple(states) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output

    def _mask(self, keys: Tokens, new: int, held: int, plain: bool, is_window: bool) -> Tensor | None:
        """The mask of one kind of layers; None where all cached tokens and the causal new ones are seen."""
        window = self.config.sliding_window if is_window else None
        columns = held + new if is_window else keys.positions.shape[1]
        if plain:
            fits = window is None or columns <= window
            if fits and new in (1, columns):
                return None
            keys = Tokens(*(x[:1] for x in keys))
        return visible(Tokens(*(x[:, -columns:] for x in keys)), new, window)


def _checked(past_key_values: Any) -> BaichuanM1Cache | None:
    if past_key_values is not None and not isinstance(past_key_values, BaichuanM1Cache):
        raise ValueError(
            f"past_key_values is a {type(past_key_values).__name__}: only a BaichuanM1Cache holds what the convolution "
            f"needs; leave it out, and pass the one that forward or generate returns."
        )
    return past_key_values


class BaichuanM1ForCausalLM(BaichuanM1PreTrainedModel, GenerationMixin):
    """The language model: tokens to logits, loss and generated text."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: BaichuanM1Config):
        super().__init__(config)
        self.model = BaichuanM1Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BaichuanM1Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: BaichuanM1Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits (B, S, V) float32, and with `labels` (B, S) the loss of each token given those before it.

        `labels` are the input ids themselves, -100 where a token does not count; the loss shifts them. `logits_to_keep`
        is the number of last positions that get logits (0 for all), or their indices. The other arguments are as of
        BaichuanM1Model.
        """
        base = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            cache=cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(base.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss, logits, base.get(CACHE), base.hidden_states)
        return output.to_tuple() if return_dict is False else output

    def _logits(self, hidden_BSE: Tensor) -> Tensor:
        """NormHead: each logit is divided by the length of its row, in float32; autograd follows the division."""
        logits = self.lm_head(hidden_BSE).float()
        if not self.config.normalize_head:
            return logits
        length_V = torch.linalg.vector_norm(self.lm_head.weight, dim=-1, dtype=torch.float32)
        return logits / length_V.clamp_min(1e-12)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict, *args: Any) -> None:
        """Called by `generate`: puts our cache where transformers would put one without the convolution's state."""
        if generation_config.cache_implementation is not None:
            raise ValueError("cache_implementation must stay unset: a Baichuan-M1 model brings its own cache.")
        if _checked(model_kwargs.get(CACHE)) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE] = BaichuanM1Cache(self.config)
