"""A tokenizer as a seqio.Vocabulary, for tasks that tokenise; needs the extra `m1jax[data]`."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from m1jax.data.tasks import import_seqio
from m1jax.data.tokenizer import Tokenizer


def seqio_vocabulary(tokenizer: Tokenizer) -> Any:
    """The seqio.Vocabulary of a tokenizer, the same for equal tokenizers.

    It has no unknown token, as any text can be encoded; inside tf.data it calls Python. seqio fills with the
    tokenizer's pad, and decodes up to its first eos. Raises UserError where seqio is not installed.
    """
    seqio, tf = import_seqio()

    class Vocabulary(seqio.Vocabulary):  # type: ignore[name-defined]
        """See seqio_vocabulary."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        bos_id = property(lambda self: tokenizer.bos_id)
        eos_id = property(lambda self: tokenizer.eos_id)
        pad_id = property(lambda self: tokenizer.pad_id)
        unk_id = property(lambda self: None)
        _base_vocab_size = property(lambda self: tokenizer.vocab_size)

        def _encode(self, s: str) -> list[int]:
            return tokenizer.encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return tokenizer.decode(int(i) for i in ids)

        def _encode_tf(self, s: Any) -> Any:
            def encode(text: Any) -> np.ndarray:
                # Bytes inside a graph, an array of no dimension outside.
                return tokenizer.encode_arrays([np.asarray(text, object).item().decode()])[0].astype(np.int32)

            ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids: Any) -> Any:
            def decode(batch: np.ndarray) -> np.ndarray:
                rows = batch.reshape(-1, batch.shape[-1])
                texts = [tokenizer.decode(row.tolist()).encode() for row in rows]
                return np.array(texts, dtype=object).reshape(batch.shape[:-1])

            texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
            texts.set_shape(ids.shape[:-1])
            return texts

        def __eq__(self, other: object) -> bool:
            theirs = getattr(other, "tokenizer", None)
            return isinstance(theirs, Tokenizer) and theirs.fingerprint == tokenizer.fingerprint

        def __hash__(self) -> int:
            return hash(tokenizer.fingerprint)

    return Vocabulary()
