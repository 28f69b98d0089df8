"""seqio, imported quietly, and a tokenizer as its Vocabulary; needs the extra `m1jax[data]`."""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from m1jax.errors import UserError
from m1jax.tokenizer.interface import Tokenizer


def import_seqio() -> tuple[Any, Any]:
    """The modules seqio and tensorflow, without the accelerator, whose memory is JAX's.

    Raises UserError where seqio is not installed.
    """
    if importlib.util.find_spec("seqio") is None:
        raise UserError("the package seqio is not installed: run `pip install 'm1jax[data]'`.")
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _quiet():
        import seqio
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    return seqio, tf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what is written to standard error, from C++ too, and lets it out if the block fails.

    TensorFlow 2.21 greets with lines about drivers and processors that no log level stops while it is imported.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


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
