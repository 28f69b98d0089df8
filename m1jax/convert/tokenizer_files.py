"""The tokenizer's files in an export: `AutoTokenizer` gives the ids of m1jax with them, and knows the chat format."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m1jax import tokenizer as tokenizers
from m1jax.errors import UserError
from m1jax.tokenizer import SPECIAL_TOKENS, saved
from m1jax.tokenizer.chat import FORMATS, jinja, template

TOKENIZER = "tokenizer.json"
CONFIG = template.CONFIG
TEMPLATE = template.FILE
# What a tokenizer may consist of, as transformers name it; the last are patterns.
_NAMES = (
    TOKENIZER,
    CONFIG,
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *(TEMPLATE, template.LEGACY, f"{template.ADDITIONAL}/*.jinja", "tokenization_*.py"),
)


def of_folder(folder: Path) -> list[Path]:
    """The files of a folder that a tokenizer consists of, its chat templates among them."""
    return [path for name in _NAMES for path in sorted(folder.glob(name)) if path.is_file()]


def write(
    source: Path | None, folder: Path, token_ids: Mapping[str, int], max_length: int | None = None
) -> tuple[str, ...]:
    """Writes the tokenizer of the folder `source` into an existing folder; returns the names of the files.

    Every file is kept as it is: settings, chat templates by any name, the vocabularies of slow tokenizers. What is
    missing is added: a tokenizer_config.json, or what ours lacks for transformers; a chat template where transformers
    look for it; and where there is none and the tokenizer has the special tokens of exactly one known chat format, that
    format's.
    `token_ids` (bos_token_id, eos_token_id, pad_token_id) name the special tokens, `max_length` is the model's number
    of positions. Without a source, or where it holds no tokenizer, nothing is written. Raises UserError where
    tokenizer.json is damaged or knows no token of an id.
    """
    if source is None:
        return ()
    names = [path.relative_to(source).as_posix() for path in of_folder(source)]
    content, own = (_content(source / name) if name in names else {} for name in (TOKENIZER, CONFIG))
    own = own if isinstance(own, dict) else {}
    special = saved.special(content, source / TOKENIZER) if TOKENIZER in names else []
    found = template.of_folder(source)
    for name in names:
        if "/" in name:
            (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    if TOKENIZER not in names:
        return tuple(names)
    is_ours = special == list(SPECIAL_TOKENS)
    if CONFIG not in names or is_ours:
        settings = _tokenizer_config(content, token_ids, source / TOKENIZER)
        if max_length is not None:
            settings["model_max_length"] = max_length
        if not settings.keys() <= own.keys():
            merged = json.dumps({**settings, **own}, indent=1, ensure_ascii=False) + "\n"
            (folder / CONFIG).write_text(merged, encoding="utf-8")
        names += [CONFIG] if CONFIG not in names else []
    text: str | None = None
    if found is None:
        fitting = [known for known in FORMATS if {mark.text for mark in known.marks} <= set(special)]
        text = jinja.template(fitting[0], special) if len(fitting) == 1 else None
    elif TEMPLATE not in names and (is_ours or own.get("chat_template") is None):
        # The file wins over several named templates in tokenizer_config.json, so it must not come beside them.
        text = None if isinstance(own.get("chat_template"), list) else found.source
    if text is not None:
        (folder / TEMPLATE).write_text(text, encoding="utf-8")
        names.append(TEMPLATE)
    return tuple(names)


def check_fits(source: Path, vocab_size: int) -> None:
    """Raises UserError where the folder's tokenizer gives ids that a model of `vocab_size` has not."""
    if not any((source / name).is_file() for name in (TOKENIZER, "tokenizer.model")):
        return
    found = tokenizers.vocab_size(source)
    if found > vocab_size:
        raise UserError(
            f"the tokenizer in {source} has ids up to {found - 1}, the model of config.json has vocab_size = "
            f"{vocab_size}: give the tokenizer of this model, or a model whose embedding was enlarged."
        )


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): fetch it, or run `m1 tokenizer`, again.") from error


def _tokenizer_config(content: Any, token_ids: Mapping[str, int], path: Path) -> dict[str, Any]:
    names = saved.tokens(content, path)
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
