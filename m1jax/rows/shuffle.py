"""Permutations that are the same on every machine and with every NumPy."""

import hashlib
import json

import numpy as np
import numpy.typing as npt


def permutation(size: int, *key: str | int) -> npt.NDArray[np.int64]:
    """A permutation of 0 … size - 1 that depends on nothing but `size` and `key`.

    It sorts raw words of a Philox generator (Salmon et al. 2011): NumPy promises that these never change, but
    does not promise it for Generator.permutation.
    """
    digest = hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size)
    return np.argsort(words, kind="stable")
