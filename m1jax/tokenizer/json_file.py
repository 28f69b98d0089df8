"""A tokenizer.json of any origin, read by `tokenizers`."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from m1jax.errors import UserError
from m1jax.tokenizer.decoding import Chain, ChainDecoder, Decoder, TableDecoder, WholeDecoder, chain_of, fallback_byte
from m1jax.tokenizer.interface import SpecialIds, Tokenizer
from m1jax.tokenizer.layout import BYTE_OF
from m1jax.tokenizer.trained import CONFIG_FILE, FILE


class JsonTokenizer(Tokenizer):
    """What `tokenizers` makes of the file, without the tokens that its post-processor adds.

    Decoding is exact where the file's own decoder is; a normaliser or a vocabulary of words loses text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialIds) -> None:
        """`special` names all three ids; raises UserError for one that the vocabulary has not."""
        # Fixed length and truncation are settings of one use of the file, not of its vocabulary.
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend
        self._saved: dict[str, Any] = json.loads(backend.to_str())
        self._tokens = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
        self._special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        for name in ("bos", "eos", "pad"):
            if getattr(special, name) not in self._tokens:
                raise UserError(
                    f"the tokenizer has no id {getattr(special, name)} for {name}: correct data.special_ids.{name}."
                )
        assert special.bos is not None and special.eos is not None and special.pad is not None
        self.bos_id, self.eos_id, self.pad_id = special.bos, special.eos, special.pad
        self._special |= {self.bos_id, self.eos_id, self.pad_id}
        self.special_tokens = {self._tokens[i]: i for i in sorted(self._special)}

    @property
    def vocab_size(self) -> int:
        """Number of ids, unused ones among them."""
        return max(self._tokens) + 1

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text as the vocabulary writes it; None where there is no such token."""
        return self._backend.token_to_id(token)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever any text may be encoded to other ids."""
        parts = json.dumps([self._saved, self.bos_id, self.eos_id, self.pad_id], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @cached_property
    def _byte_level(self) -> bool:
        """Whether tokens are written in byte characters."""
        return "ByteLevel" in _types(self._saved.get("decoder"))

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes that each id stands for; none for a special token and an unused id."""
        added = self._backend.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for i, token in self._tokens.items():
            if i in self._special:
                continue
            if i in added:
                table[i] = token.encode()
            elif self._byte_level and all(character in BYTE_OF for character in token):
                table[i] = bytes(BYTE_OF[character] for character in token)
            elif (byte := fallback_byte(token)) is not None and "ByteFallback" in _types(self._saved.get("decoder")):
                table[i] = bytes([byte])
            else:
                # The mark of a space, and of a word that goes on, as sentencepiece and WordPiece write them.
                table[i] = token.replace("▁", " ").removeprefix("##").encode()
        return table

    @cached_property
    def token_bytes(self) -> list[int]:
        """Number of UTF-8 bytes that each id stands for: 0 for special tokens."""
        return [len(token) for token in self._bytes]

    @cached_property
    def byte_ids(self) -> Sequence[int] | None:
        """The id of each of the 256 bytes; None where a byte alone has no id."""
        if not self._byte_level:
            return None
        ids = {token: i for i, token in enumerate(self._bytes) if len(token) == 1}
        found = [ids.get(bytes([byte])) for byte in range(256)]
        return None if None in found else [i for i in found if i is not None]

    @cached_property
    def special_begins(self) -> bool:
        """Whether text behind a special token is encoded like the beginning of a text: with the space, if any."""
        added = self._backend.get_added_tokens_decoder()
        mark = next((token.content for token in added.values() if token.special), None)
        if mark is None or self._lead is None:
            return True
        acting = tokenizers.Tokenizer.from_str(json.dumps(self._saved))
        ids = acting.encode(f"{mark}b", add_special_tokens=False).ids
        return ids[1:] == self.encode("b")

    def _encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        try:
            found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeError):
            raise
        except Exception as error:  # what `tokenizers` itself raises: a vocabulary without the token for the unknown
            raise UserError(
                f"the tokenizer cannot encode a text ({error}): add the token that it asks for to its vocabulary."
            ) from error
        return [np.array(encoding.ids, np.uint32) for encoding in found]

    @cached_property
    def _chain(self) -> Chain | None:
        """How the file's decoder writes one token at a time; None where it must see all of them at once."""
        written = {i: token for i, token in self._tokens.items() if i not in self._special}
        return chain_of(self._saved.get("decoder"), written)

    def decoder(self) -> Decoder:
        """What turns the ids of one text into bytes; in byte-level BPE every id has its own."""
        if self._byte_level:
            return TableDecoder(self._bytes)
        return WholeDecoder(self._decode_whole) if self._chain is None else ChainDecoder(self._chain)

    def _decode_whole(self, ids: Sequence[int]) -> str:
        kept = [i for i in ids if i in self._tokens and i not in self._special]
        return self._backend.decode(kept, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `tokenizers` and `transformers` load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / FILE))
        special = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: self._tokens[i] for name, i in special.items()},
            "clean_up_tokenization_spaces": False,
        }
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _types(part: Any) -> set[str]:
    """Names of the decoders of a saved decoder."""
    if not isinstance(part, dict):
        return set()
    return {part["type"]}.union(*(_types(inner) for inner in part.get("decoders", [])))
