"""Loading any tokenizer, and finding out which ids its special tokens have."""

import json
import logging
from pathlib import Path
from typing import Any

import tokenizers

from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.tokenizer import saved
from m1jax.tokenizer.interface import SpecialIds, Tokenizer
from m1jax.tokenizer.json_file import JsonTokenizer
from m1jax.tokenizer.sentencepiece_file import SentencePieceTokenizer, processor
from m1jax.tokenizer.trained import FILE, of_saved

PIECES_FILE = "tokenizer.model"
# Who says which tokens are special, the first that does is believed.
_NEIGHBOURS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")


def load(path: Path, special: SpecialIds | None = None) -> Tokenizer:
    """The tokenizer at `path`: a folder of tokenizer.json or tokenizer.model, or such a file itself.

    `special` wins over what the files say of bos, eos and pad. Raises UserError where the file is missing or damaged,
    or nothing says which id one of the three has.
    """
    file = _file(path)
    found = _load(file, special or SpecialIds())
    found.folder = file.parent
    return found


def _load(file: Path, special: SpecialIds) -> Tokenizer:
    if file.suffix == ".model":
        return SentencePieceTokenizer(file, special.or_else(_of_neighbours(file, {})))
    content = _json(file)
    if (ours := of_saved(content)) is not None:
        return ours
    backend = _backend(content, file)
    if lost := saved.swallowed(content):
        logging.getLogger(__name__).warning(
            "%s drops %s: its BPE has no token for what is unknown. Text with them is not what the model reads.",
            file,
            lost,
        )
    known = backend.get_vocab(with_added_tokens=True)
    settings = file.parent / _NEIGHBOURS[0]
    if added := saved.check_added(_json(settings) if settings.is_file() else {}, known, settings):
        logging.getLogger(__name__).warning(
            "%s adds tokens that %s lacks, which m1jax reads as text: %s. To keep them, save the tokenizer again with "
            "transformers.",
            settings,
            file.name,
            ", ".join(map(repr, added)),
        )
    found = special.or_else(_of_neighbours(file, known))
    missing = [name for name in ("bos", "eos", "pad") if getattr(found, name) is None]
    if missing:
        raise UserError(
            f"nothing beside {file} says which token is {' or '.join(missing)}: set the config keys "
            f"{', '.join(f'data.special_ids.{name}' for name in missing)}, or put its tokenizer_config.json there."
        )
    return JsonTokenizer(backend, found)


def _backend(content: Any, file: Path) -> tokenizers.Tokenizer:
    """What `tokenizers` makes of a parsed file; raises UserError where it cannot, and for two tokens of one id."""
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # what `tokenizers` itself raises
        raise UserError(f"{file} is no file that `tokenizers` reads ({error}): give another tokenizer.") from error
    saved.tokens(content, file)
    return backend


def vocab_size(path: Path) -> int:
    """Number of ids of the tokenizer at `path`, with or without known special tokens.

    Raises UserError where `load` does.
    """
    file = _file(path)
    if file.suffix == ".model":
        return processor(file).get_piece_size()
    return 1 + max(_backend(_json(file), file).get_vocab(with_added_tokens=True).values())


def of_run(config: RunConfig) -> Tokenizer:
    """The run's tokenizer; raises UserError where it is missing, damaged, or does not say its special ids."""
    return load(config.tokenizer, special_ids(config))


def special_ids(config: RunConfig) -> SpecialIds:
    """The ids that the config gives."""
    given = config.data.special_ids
    ids = {name: i if i >= 0 else None for name, i in (("bos", given.bos), ("eos", given.eos), ("pad", given.pad))}
    return SpecialIds(**ids)


def _file(path: Path) -> Path:
    """The file that holds the tokenizer at `path`."""
    if path.is_file():
        return path
    for name in (FILE, PIECES_FILE):
        if (path / name).is_file():
            return path / name
    missing = path if path.suffix in (".json", ".model") else path / FILE
    raise UserError(f"{missing} is missing: run `m1 tokenizer train` first, or give the right folder.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): run `m1 tokenizer train` again, or fetch it anew.") from error


def _of_neighbours(file: Path, known: dict[str, int]) -> SpecialIds:
    """What the files beside the tokenizer say of bos, eos and pad; `known` is token to id."""
    found = SpecialIds()
    for name in _NEIGHBOURS:
        path = file.parent / name
        content = _json(path) if path.is_file() else None
        if isinstance(content, dict):
            ids = {kind: _special_id(content, kind, known) for kind in ("bos", "eos", "pad")}
            found = found.or_else(SpecialIds(**ids))
    return found


def _special_id(content: dict[str, Any], kind: str, known: dict[str, int]) -> int | None:
    """Id of a special token in one of transformers' files: `eos_token` names it, `eos_token_id` numbers it."""
    token, number = content.get(f"{kind}_token"), content.get(f"{kind}_token_id")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and token in known:
        return known[token]
    # Some models list several ends of a text; the first is the one that training puts behind a document.
    if isinstance(number, list) and number:
        number = number[0]
    return number if isinstance(number, int) else None
