"""A tokenizer that m1jax trained: ids as layout.py lays them out."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m1jax.tokenizer import fast, layout
from m1jax.tokenizer.decoding import Decoder, TableDecoder
from m1jax.tokenizer.interface import Tokenizer

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


class TrainedTokenizer(Tokenizer):
    """Byte-level BPE, exact on any text and any bytes."""

    pad_id, bos_id, eos_id = layout.PAD, layout.BOS, layout.EOS
    byte_ids = range(layout.NUM_SPECIAL, layout.FIRST_MERGE)

    def __init__(self, merges: layout.Merges) -> None:
        """`merges` in rank order, written in byte characters, each giving a token that no other merge gives."""
        self._merges = [(left, right) for left, right in merges]
        assert len(layout.vocabulary(self._merges)) == self.vocab_size, "two merges give the same token"
        self._backend = layout.backend(self._merges)
        self._backend.encode_special_tokens = True
        self.special_tokens = {token: i for i, token in enumerate(layout.SPECIAL_TOKENS)}

    @property
    def merges(self) -> layout.Merges:
        """The merges in rank order, in byte characters; merge i makes id FIRST_MERGE + i."""
        return self._merges

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return layout.FIRST_MERGE + len(self._merges)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text as tokenizer.json writes it; None where there is no such token."""
        return self._backend.token_to_id(token)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever any text may be encoded to other ids."""
        parts = json.dumps([layout.SPECIAL_TOKENS, layout.WORDS, self._merges], separators=(",", ":"))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @cached_property
    def token_texts(self) -> list[str]:
        """How tokenizer.json writes each id: special tokens by name, the others in byte characters."""
        return [*layout.SPECIAL_TOKENS, *layout.BYTE_CHARACTERS, *(left + right for left, right in self._merges)]

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes that each id stands for; none for a special token."""
        return [b""] * layout.NUM_SPECIAL + [layout.as_bytes(text) for text in self.token_texts[layout.NUM_SPECIAL :]]

    @cached_property
    def token_bytes(self) -> list[int]:
        """Number of UTF-8 bytes that each id stands for: 0 for special tokens."""
        return [len(token) for token in self._bytes]

    @cached_property
    def _fast(self) -> Any:
        """The fast encoder; None where it would give other ids."""
        return fast.encoding(self._merges) if fast.allowed(self._merges, self._backend) else None

    @property
    def encoder_name(self) -> str:
        """The library that encodes."""
        return "tokenizers" if self._fast is None else "tiktoken"

    def _encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        if self._fast is None:
            return self.encode_by_tokenizers(texts)
        return [self._fast.encode_to_numpy(text, disallowed_special=()) for text in texts]

    def encode_by_tokenizers(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each text by the library `tokenizers`, which the fast encoder must equal."""
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in found]

    def decoder(self) -> Decoder:
        """What turns the ids of one text into bytes."""
        return TableDecoder(self._bytes)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `tokenizers` and `transformers` load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / FILE))
        text = json.dumps(layout.CONFIG, indent=1, ensure_ascii=False) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def of_saved(saved: Any) -> TrainedTokenizer | None:
    """The tokenizer of a parsed tokenizer.json; None where the file describes any other than one of ours."""
    try:
        merges = [(str(left), str(right)) for left, right in saved["model"]["merges"]]
        same = saved["model"]["vocab"] == layout.vocabulary(merges)
    except (KeyError, TypeError, ValueError):
        return None
    if not same or len(saved["model"]["vocab"]) != layout.FIRST_MERGE + len(merges):
        return None
    # A normaliser, another word pattern or a setting of the model would change ids: the whole file must be ours.
    ours = json.loads(layout.backend([]).to_str())
    empty = {**saved, "model": {**saved["model"], "vocab": ours["model"]["vocab"], "merges": []}}
    return TrainedTokenizer(merges) if empty == ours else None
