"""What a parsed tokenizer.json says of its tokens, and what is wrong with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.tokenizer.layout import BYTE_CHARACTERS


def tokens(content: Any, path: Path) -> dict[int, str]:
    """Id to token, added ones among them.

    Raises UserError where the file at `path` is no tokenizer, and where two tokens have one id: training a vocabulary
    again beside added tokens can do that, and texts then lose words.
    """
    found: dict[int, str] = {}
    try:
        vocabulary = content["model"]["vocab"]
        # A Unigram model lists (token, score), the others map token to id.
        unigram = not isinstance(vocabulary, dict)
        pairs = [(token[0], i) for i, token in enumerate(vocabulary)] if unigram else [*vocabulary.items()]
        for token, i in [*pairs, *((added["content"], added["id"]) for added in content.get("added_tokens") or ())]:
            if found.setdefault(i, token) != token:
                raise UserError(
                    f"{path} gives two tokens, {found[i]!r} and {token!r}, the id {i}: give one of them its own id."
                )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no tokenizer of the `tokenizers` library: give another folder.") from error
    return found


def special(content: Any, path: Path) -> list[str]:
    """The special tokens that the file finds in a text, by id; raises UserError as `tokens` does."""
    tokens(content, path)
    added = sorted(content.get("added_tokens") or (), key=lambda token: token["id"])
    return [token["content"] for token in added if token["special"]]


def check_added(settings: Any, known: Mapping[str, int], place: Path) -> list[str]:
    """Tokens that a tokenizer_config.json at `place` adds to those of tokenizer.json, `known` with their ids.

    transformers add them; m1jax reads them as text. Raises UserError where a token has another id in the two files.
    """
    listed = settings.get("added_tokens_decoder") if isinstance(settings, dict) else None
    missing = []
    for number, token in (listed if isinstance(listed, dict) else {}).items():
        content = str(token.get("content") if isinstance(token, dict) else token)
        if content not in known:
            missing.append(content)
        elif str(known[content]) != str(number):
            raise UserError(
                f"{place} says that {content!r} has the id {number}, tokenizer.json beside it says {known[content]}: "
                f"correct the one or the other."
            )
    return missing


def swallowed(content: Any) -> str | None:
    """What a BPE drops from a text without a trace, its neighbours joining; None where it drops nothing.

    A BPE has a token for what it does not know, or spells it in bytes; where it has neither, the library leaves it out.
    """
    model = content["model"]
    # Files of old versions have no type; only a BPE has merges.
    if "merges" not in model or model.get("unk_token") is not None:
        return None
    if "ByteLevel" in _types(content.get("pre_tokenizer")) | _types(content.get("normalizer")):
        missing = [byte for byte, character in enumerate(BYTE_CHARACTERS) if character not in model["vocab"]]
        return f"{len(missing)} of the 256 bytes (the first is 0x{missing[0]:02X})" if missing else None
    if model.get("byte_fallback"):
        missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]
        return f"characters with one of {len(missing)} bytes (the first is 0x{missing[0]:02X})" if missing else None
    return "every character that its vocabulary lacks"


def _types(part: Any) -> set[str]:
    """Names of the steps of a normaliser or a pre-tokenizer."""
    if not isinstance(part, dict):
        return set()
    inside = [*(part.get("pretokenizers") or ()), *(part.get("normalizers") or ())]
    return {str(part.get("type"))}.union(*map(_types, inside))
