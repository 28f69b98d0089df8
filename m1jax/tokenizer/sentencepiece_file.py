"""A SentencePiece model (Kudo & Richardson 2018, arXiv 1808.06226), read by its own library for its own ids."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m1jax.errors import UserError
from m1jax.tokenizer.decoding import Decoder
from m1jax.tokenizer.interface import SpecialIds, Tokenizer


def processor(path: Path) -> Any:
    """The library's object of a model; raises UserError where the library or the model cannot be read."""
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"{path} is a SentencePiece model, and the package sentencepiece is not installed: run "
            f"`pip install 'm1jax[data]'`."
        ) from error
    content = path.read_bytes()
    found = sentencepiece.SentencePieceProcessor()
    try:
        # An empty model loads as one of no pieces.
        if not content or not found.LoadFromSerializedProto(content) or not found.get_piece_size():
            raise RuntimeError("it holds no pieces")
    except RuntimeError as error:
        raise UserError(
            f"{path} is no readable SentencePiece model ({error}): give another, or fetch it anew."
        ) from error
    return found


class _Decoder(Decoder):
    """What the library decodes, one id at a time; bytes stay bytes, so that a character may come in several."""

    def __init__(self, processor: Any, special: Sequence[int]) -> None:
        self._processor, self._special = processor, special
        # Spaces at the beginning of a text may be dropped: until there is some text, the library sees all ids.
        self._start: list[int] | None = []

    def push(self, token: int) -> bytes:
        """See m1jax.tokenizer.decoding.Decoder."""
        model = self._processor
        if token in self._special or not 0 <= token < model.get_piece_size():
            return b""
        if model.is_byte(token):
            self._start = None
            return bytes([int(model.id_to_piece(token)[3:5], 16)])
        if self._start is not None:
            self._start.append(token)
            text = model.decode(self._start)
            if text:
                self._start = None
            return text.encode()
        if model.is_control(token) or model.is_unknown(token):
            return model.decode([token]).encode()
        return model.id_to_piece(token).replace("▁", " ").encode()


class SentencePieceTokenizer(Tokenizer):
    """What `sentencepiece` makes of the model; decoding is exact where its normaliser is the identity."""

    byte_ids = None  # it has some, but puts a space before the text that follows a lone byte

    def __init__(self, path: Path, special: SpecialIds) -> None:
        """`special` wins over the model; raises UserError where neither says which id is bos, eos or pad."""
        self._path = path
        self._processor = processor(path)
        ids = {name: getattr(self._processor, f"{name}_id")() for name in ("bos", "eos", "pad")}
        found = special.or_else(SpecialIds(**{name: i if i >= 0 else None for name, i in ids.items()}))
        values: dict[str, int] = {}
        for name in ("bos", "eos", "pad"):
            value = getattr(found, name)
            if value is None:
                raise UserError(f"{path} names no token for {name}: set the config key data.special_ids.{name}.")
            if not 0 <= value < self.vocab_size:
                raise UserError(f"{path} has no id {value} for {name}: correct data.special_ids.{name}.")
            values[name] = value
        self.bos_id, self.eos_id, self.pad_id = values["bos"], values["eos"], values["pad"]
        control = filter(self._processor.is_control, range(self.vocab_size))
        self.special_tokens = {self._processor.id_to_piece(i): i for i in sorted({*control, *values.values()})}

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._processor.get_piece_size()

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text as the vocabulary writes it; None where there is no such token."""
        found = self._processor.piece_to_id(token)
        # What is no piece gets the id of the unknown one.
        return found if self._processor.id_to_piece(found) == token else None

    @property
    def encoder_name(self) -> str:
        """The library that encodes."""
        return "sentencepiece"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever any text may be encoded to other ids."""
        digest = hashlib.sha256(self._processor.serialized_model_proto())
        digest.update(json.dumps([self.bos_id, self.eos_id, self.pad_id]).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def token_bytes(self) -> list[int]:
        """Number of UTF-8 bytes that each id stands for: 0 for special tokens."""
        return [self._size(i) for i in range(self.vocab_size)]

    def _size(self, i: int) -> int:
        model = self._processor
        if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
            return 0
        return 1 if model.is_byte(i) else len(model.id_to_piece(i).replace("▁", " ").encode())

    def _encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.array(self._processor.encode(text), np.uint32) for text in texts]

    def decoder(self) -> Decoder:
        """What turns the ids of one text into bytes."""
        return _Decoder(self._processor, (self.bos_id, self.eos_id, self.pad_id))

    def save(self, folder: Path) -> None:
        """Writes tokenizer.model and tokenizer_config.json with the ids of bos, eos and pad."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._path, folder / "tokenizer.model")
        special = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "clean_up_tokenization_spaces": False}
        for name, i in special.items():
            config |= {f"{name}_token": self._processor.id_to_piece(i), f"{name}_token_id": i}
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
