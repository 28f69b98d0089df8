"""The tokenizer's files in an export, with which `AutoTokenizer` gives the same ids as m1jax and knows the chat format.

The chat format (reference code): each turn is its role's token and its text, with nothing between, a default system
turn first where there is none. An answer that is the last turn is closed by eos, as every document in training is;
with `add_generation_prompt` the assistant's token is put last, and what the model then writes ends at eos.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.tokenizer import DEFAULT_SYSTEM, ROLES, SPECIAL_TOKENS

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
# What a tokenizer of another origin may consist of, as transformers name it.
_OTHERS = (
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
)

# Rendered text is tokenised as a whole, so a special token inside a message would act as one: it is refused. The words
# in capitals are filled in below. The block `generation` marks what the model itself writes, for masks in training.
_TEMPLATE = """\
{%- set roles = ROLES -%}
{%- if not messages or messages[0]['role'] != 'system' -%}
{{- roles['system'] + DEFAULT_SYSTEM -}}
{%- endif -%}
{%- for message in messages -%}
{%- set number, role, content = loop.index, message['role'], message['content'] -%}
{%- if role not in roles -%}
{{- raise_exception('role ' ~ role ~ ' is unknown: use one of ' ~ roles | join(', ') ~ '.') -}}
{%- endif -%}
{%- if content is not string -%}
{{- raise_exception('the content of message ' ~ number ~ ' is no text.') -}}
{%- endif -%}
{%- for token in SPECIAL_TOKENS -%}
{%- if token in content -%}
{{- raise_exception('message ' ~ number ~ ' holds the special token ' ~ token ~ ': take it out.') -}}
{%- endif -%}
{%- endfor -%}
{{- roles[role] -}}
{%- if role == 'assistant' -%}
{%- set end = eos_token if loop.last and not add_generation_prompt else '' -%}
{%- generation -%}{{- content + end -}}{%- endgeneration -%}
{%- else -%}
{{- content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- roles['assistant'] -}}{%- endif -%}
"""


def chat_template(special: Sequence[str]) -> str:
    """The chat format as a Jinja template for `apply_chat_template`, of a tokenizer with these special tokens."""
    words = {
        "DEFAULT_SYSTEM": DEFAULT_SYSTEM,
        "SPECIAL_TOKENS": list(special),
        "ROLES": {role: SPECIAL_TOKENS[i] for role, i in ROLES.items()},
    }
    template = _TEMPLATE
    for word, value in words.items():
        template = template.replace(word, repr(value))
    return template


def write(
    source: Path | None, folder: Path, token_ids: Mapping[str, int], max_length: int | None = None
) -> tuple[str, ...]:
    """Writes the tokenizer of the folder `source` into an existing folder; returns the names of the files.

    A tokenizer that `m1 tokenizer` trained gets a new tokenizer_config.json; one of another origin keeps its own, and
    gets one only where it has none. Where the tokenizer has the role tokens and no chat template, ours is added.
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
    if special == list(SPECIAL_TOKENS):
        names = [TOKENIZER]
    written = _copied(names, source, folder)
    if CONFIG not in names:
        settings = _tokenizer_config(content, token_ids, source / TOKENIZER)
        if max_length is not None:
            settings["model_max_length"] = max_length
        (folder / CONFIG).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written += (CONFIG,)
    has_roles = {SPECIAL_TOKENS[i] for i in ROLES.values()} <= set(special)
    if has_roles and TEMPLATE not in written and "chat_template" not in _content(folder / CONFIG):
        (folder / TEMPLATE).write_text(chat_template(special), encoding="utf-8")
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
