"""The tokenizer's files in an export: `AutoTokenizer` gives the ids of m1jax with them, and knows the chat format."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.tokenizer import SPECIAL_TOKENS
from m1jax.tokenizer.chat import FORMATS, jinja, template

TOKENIZER = "tokenizer.json"
CONFIG = template.CONFIG
TEMPLATE = template.FILE
# What a tokenizer of another origin may consist of, as transformers name it.
_OTHERS = (
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
)


def write(
    source: Path | None, folder: Path, token_ids: Mapping[str, int], max_length: int | None = None
) -> tuple[str, ...]:
    """Writes the tokenizer of the folder `source` into an existing folder; returns the names of the files.

    A tokenizer that `m1 tokenizer` trained gets a new tokenizer_config.json; one of another origin keeps its own, and
    gets one only where it has none. A chat template is kept; where there is none and the tokenizer has the special
    tokens of exactly one known chat format, that format's template is added.
    `token_ids` (bos_token_id, eos_token_id, pad_token_id) name the special tokens, `max_length` is the model's number
    of positions. Without a source, or where it holds no tokenizer, nothing is written. Raises UserError where
    tokenizer.json is damaged or knows no token of an id.
    """
    if source is None:
        return ()
    names = [name for name in (TOKENIZER, CONFIG, *_OTHERS) if (source / name).is_file()]
    names += [path.name for path in sorted(source.glob("tokenization_*.py"))]
    if TOKENIZER not in names:
        return _copied(names, source, folder)
    content = _content(source / TOKENIZER)
    special = _special(content, source / TOKENIZER)
    found = template.of_folder(source)
    if special == list(SPECIAL_TOKENS):
        names = [TOKENIZER]
    written = _copied(names, source, folder)
    if CONFIG not in names:
        settings = _tokenizer_config(content, token_ids, source / TOKENIZER)
        if max_length is not None:
            settings["model_max_length"] = max_length
        (folder / CONFIG).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written += (CONFIG,)
    if template.of_folder(folder) is None:
        fitting = [known for known in FORMATS if {mark.text for mark in known.marks} <= set(special)]
        text = found.source if found else jinja.template(fitting[0], special) if len(fitting) == 1 else None
        if text is not None:
            (folder / TEMPLATE).write_text(text, encoding="utf-8")
            written += (TEMPLATE,)
    return written


def _copied(names: Sequence[str], source: Path, folder: Path) -> tuple[str, ...]:
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return tuple(names)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): fetch it, or run `m1 tokenizer`, again.") from error


def _tokens(content: Any, path: Path) -> dict[int, str]:
    """Id to token of a parsed tokenizer.json."""
    try:
        vocabulary = content["model"]["vocab"]
        # A Unigram model lists (token, score), the others map token to id.
        pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((t[0], i) for i, t in enumerate(vocabulary))
        names = {i: token for token, i in pairs}
        return names | {added["id"]: added["content"] for added in content.get("added_tokens") or ()}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no tokenizer of the `tokenizers` library: give another folder.") from error


def _special(content: Any, path: Path) -> list[str]:
    """The special tokens that a parsed tokenizer.json finds in a text, by id."""
    _tokens(content, path)
    added = sorted(content.get("added_tokens") or (), key=lambda token: token["id"])
    return [token["content"] for token in added if token["special"]]


def _tokenizer_config(content: Any, token_ids: Mapping[str, int], path: Path) -> dict[str, Any]:
    names = _tokens(content, path)
    special: dict[str, str] = {}
    for kind in ("bos", "eos", "pad"):
        number = token_ids.get(f"{kind}_token_id")
        if number is None:
            continue
        if number not in names:
            raise UserError(f"{path} has no token of id {number}, which the model takes for {kind}: check its config.")
        special[f"{kind}_token"] = names[number]
    if content["model"].get("unk_token") is not None:
        special["unk_token"] = content["model"]["unk_token"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        # A batch of prompts is continued at its right end.
        "padding_side": "left",
    }
