"""Generation: prefill in chunks, then a decoding loop that never leaves the device.

Legend: B batch, S sequence, V vocabulary, N new tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m1jax import model as models
from m1jax.config import ModelConfig
from m1jax.errors import UserError
from m1jax.generate.sampling import Sampling, sample

Array = jax.Array

# Prompts are padded to a power of two up to this many tokens, longer ones to a multiple, prefilled chunk by chunk:
# programs are then compiled for few lengths, and the scores of a prefill stay small.
_CHUNK = 512
_SMALLEST = 16
_NO_EOS = -1


class LanguageModel:
    """A model ready to answer: `model(tokens)` gives logits, `model.generate(tokens, ...)` continues prompts.

    `state` holds the parameters with every layer by itself (`m1jax.model.unrolled`); `rope_base` is that of the stage
    the parameters come from.
    """

    def __init__(self, config: ModelConfig, rope_base: float, parameters: dict[str, Any]):
        """From the parameter tree of `m1jax.model.create` or of a checkpoint."""
        self.config = config
        self.rope_base = rope_base
        self._graphdef, self.state = models.unrolled(config, parameters)

    def __call__(self, tokens: Any, segment_ids: Any = None, positions: Any = None) -> Array:
        """Logits (B, S, V) float32 of tokens (B, S) integers; a single row (S,) gives (S, V).

        `segment_ids` and `positions` (same shape) as of `m1jax.model.Decoder.hidden`: documents of a packed row with 0
        for padding, and positions that by default restart in each document. Raises UserError for a token outside the
        vocabulary.
        """
        tokens = np.asarray(tokens)
        self._check_tokens(tokens)
        rows = [None if x is None else jnp.atleast_2d(jnp.asarray(x, jnp.int32)) for x in (segment_ids, positions)]
        logits = _logits(
            self._graphdef, self.state, jnp.atleast_2d(jnp.asarray(tokens, jnp.int32)), *rows, self.rope_base
        )
        return logits[0] if tokens.ndim == 1 else logits

    def generate(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        eos_id: int | None = None,
    ) -> Any:
        """Continues one prompt (a list of ids gives a list) or several of any lengths (a list of lists).

        Only the new tokens are returned, at most `max_new_tokens`, `eos_id` last where it ended a row. The same seed
        gives the same tokens. Raises UserError for an empty prompt, a token outside the vocabulary, a setting outside
        its range, or more tokens than the model has positions.
        """
        single = len(tokens) > 0 and np.ndim(tokens[0]) == 0
        prompts = [np.asarray(row) for row in ([tokens] if single else tokens)]
        sampling = Sampling(temperature, top_k, top_p)
        self._check(prompts, max_new_tokens, sampling)
        longest = max(len(prompt) for prompt in prompts)
        padded, real = _left_padded(prompts, _bucket(longest))
        cache = models.empty_cache(self.config, len(prompts), _bucket(longest + max_new_tokens))
        for start in range(0, padded.shape[1], _CHUNK):
            chunk = slice(start, start + _CHUNK)
            logits, cache = _prefill(
                self._graphdef, self.state, padded[:, chunk], real[:, chunk], cache, jnp.float32(self.rope_base)
            )
        new, counts = _decode(
            self._graphdef,
            self.state,
            logits,
            cache,
            jnp.float32(self.rope_base),
            jax.random.key(seed),
            jnp.int32(max_new_tokens),
            jnp.int32(_NO_EOS if eos_id is None else eos_id),
            sampling=sampling,
            room=_bucket(max_new_tokens),
        )
        rows = [row[:count].tolist() for row, count in zip(np.asarray(new), np.asarray(counts), strict=True)]
        return rows[0] if single else rows

    def _check(self, prompts: list[np.ndarray], max_new_tokens: int, sampling: Sampling) -> None:
        sampling.check()
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        if not prompts or any(len(prompt) == 0 for prompt in prompts):
            raise UserError("a prompt is empty: give each at least one token.")
        for prompt in prompts:
            self._check_tokens(prompt)
        total = max(len(prompt) for prompt in prompts) + max_new_tokens
        if total > self.config.max_positions:
            raise UserError(
                f"prompt and new tokens need {total} positions, the model has {self.config.max_positions}: shorten the "
                f"prompt or lower max_new_tokens."
            )

    def _check_tokens(self, tokens: np.ndarray) -> None:
        if not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(f"tokens must be integers, got {tokens.dtype}.")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            raise UserError(
                f"tokens from {tokens.min()} to {tokens.max()} leave the vocabulary of {self.config.vocab_size}: use "
                f"the model's own tokenizer."
            )


def _bucket(length: int) -> int:
    """The length that programs are compiled for: the next power of two, or above a chunk the next multiple of it."""
    if length > _CHUNK:
        return -(-length // _CHUNK) * _CHUNK
    return max(_SMALLEST, 1 << (length - 1).bit_length())


def _left_padded(prompts: list[np.ndarray], length: int) -> tuple[Array, Array]:
    """Tokens (B, length) int32 and which are real; padding comes first, so that every row ends with its prompt."""
    tokens = np.zeros((len(prompts), length), np.int32)
    real = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        real[row, length - len(prompt) :] = True
    return jnp.asarray(tokens), jnp.asarray(real)


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    graphdef: Any, state: Any, tokens: Array, segment_ids: Array | None, positions: Array | None, rope_base: float
) -> Array:
    return nnx.merge(graphdef, state)(tokens, segment_ids, positions, rope_base=rope_base)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _prefill(
    graphdef: Any, state: Any, tokens: Array, real: Array, cache: models.Cache, rope_base: Array
) -> tuple[Array, models.Cache]:
    """Logits (B, V) after the chunk's last token, and the cache with the chunk."""
    decoder = nnx.merge(graphdef, state)
    hidden, cache = decoder.extend(tokens, cache, rope_base=rope_base, real=real)
    return models.norm_head(hidden[:, -1:], decoder.head.weight[...])[:, 0], cache


@functools.partial(jax.jit, static_argnums=0, static_argnames=("sampling", "room"))
def _decode(
    graphdef: Any,
    state: Any,
    logits_BV: Array,
    cache: models.Cache,
    rope_base: Array,
    key: Array,
    limit: Array,
    eos_id: Array,
    *,
    sampling: Sampling,
    room: int,
) -> tuple[Array, Array]:
    """New tokens (B, room) and how many of each row count; stops at `limit` or when every row has met `eos_id`."""
    decoder = nnx.merge(graphdef, state)
    B = logits_BV.shape[0]

    def going(carry: Any) -> Array:
        step, _, _, _, _, done = carry
        return (step < limit) & ~jnp.all(done)

    def one(carry: Any) -> Any:
        step, logits, cache, new, counts, done = carry
        token = sample(logits, jax.random.fold_in(key, step), sampling)
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        counts += ~done
        done |= token == eos_id
        hidden, cache = decoder.extend(token[:, None], cache, rope_base=rope_base)
        logits = models.norm_head(hidden, decoder.head.weight[...])[:, 0]
        return step + 1, logits, cache, new, counts, done

    start = (
        jnp.int32(0),
        logits_BV,
        cache,
        jnp.zeros((B, room), jnp.int32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
    )
    _, _, _, new, counts, _ = jax.lax.while_loop(going, one, start)
    return new, counts
