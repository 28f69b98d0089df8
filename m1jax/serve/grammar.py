"""JSON schemas as constraints of answers, by llguidance (Earley's parser over the vocabulary, made for this)."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import llguidance
import numpy as np

from m1jax.errors import UserError
from m1jax.generate.steering import words
from m1jax.serve.errors import RequestError
from m1jax.tokenizer import Tokenizer

_LONGEST = 100_000
"""Characters of a schema."""
_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line: where any white space may stand, a small model often writes nothing else until its tokens end."""
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)
"""Errors would hold schemas and answers."""


class Grammars:
    """Schemas for a vocabulary."""

    def __init__(self, tokenizer: Tokenizer, token_bytes: Callable[[int], bytes], vocab_size: int):
        """`token_bytes` says what a token writes; `vocab_size` is the model's, which may be larger."""
        self._tokenizer, self._token_bytes, self._vocab_size = tokenizer, token_bytes, vocab_size

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._token_bytes)))

    def constraint(self, schema: Any, end_ids: Sequence[int]) -> "JsonConstraint":
        """For one answer that one of the end tokens may end; raises RequestError for what is no usable schema."""
        if not isinstance(schema, dict | bool):
            raise _refused("it must be an object")
        try:
            text = json.dumps(schema)
        except RecursionError as error:
            raise _refused("it is nested too deep") from error
        if len(text) > _LONGEST:
            raise _refused(f"it has {len(text)} characters, at most {_LONGEST} are read")
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT)
        except ValueError as error:
            raise _refused(str(error)) from error
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return JsonConstraint(matcher, words(self._vocab_size), self._tokenizer.eos_id, end_ids)


class JsonConstraint:
    """See `m1jax.generate.steering.Constraint`: an answer that is JSON of a schema."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int, end: int, end_ids: Sequence[int]):
        """`size` numbers of 32 tokens; `end` is the token that ends a text for the matcher."""
        self._matcher, self._size, self._end, self._end_ids = matcher, size, end, end_ids

    def copy(self) -> "JsonConstraint":
        """The same for another answer."""
        other = JsonConstraint.__new__(JsonConstraint)
        other.__dict__.update(self.__dict__, _matcher=self._matcher.deep_copy())
        return other

    def allowed(self) -> np.ndarray:
        """Every end token of the request where the JSON may end."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        found = np.zeros(self._size, np.uint32)
        found[: len(mask)] = mask[: self._size]
        may_end = _bit(found, self._end)
        _set(found, self._end, False)
        for token in self._end_ids:
            _set(found, token, may_end)
        return found

    def take(self, token: int) -> None:
        """The next token; what went wrong with it is said by the next `allowed`, and so to this request alone."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether the JSON is whole."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError("the answer cannot go on within response_format: use a simpler schema.")


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, token_bytes: Callable[[int], bytes]):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self.tokens = [token_bytes(token) for token in range(tokenizer.vocab_size)]

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text)


def _bit(found: np.ndarray, token: int) -> bool:
    return bool(found[token // 32] >> np.uint32(token % 32) & 1)


def _set(found: np.ndarray, token: int, on: bool) -> None:
    bit = np.uint32(1 << token % 32)
    found[token // 32] = found[token // 32] | bit if on else found[token // 32] & ~bit


def _refused(reason: str) -> RequestError:
    reason = " ".join(reason.split())
    return RequestError(
        400, f"the schema of response_format is not usable ({reason[:300]}): see docs/serving.md.", "response_format"
    )
