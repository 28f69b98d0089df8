"""The chat template that comes with a model: found in its folder, rendered in a sandbox, recognised by behaviour."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.tokenizer.chat import render as renderer
from m1jax.tokenizer.chat.formats import ANSWERS, ChatFormat, Message, Own, written

FILE = "chat_template.jinja"
LEGACY = "chat_template.json"
ADDITIONAL = "additional_chat_templates"
"""Folder of templates with other names, which transformers use where one is asked for."""
CONFIG = "tokenizer_config.json"
TOKENS = "special_tokens_map.json"
# Bounds of what a template may take: those of transformers' own templates are a thousand times smaller.
_SECONDS = 5
_WALL_SECONDS = 60
_MEMORY = 1 << 30
_CHARACTERS = 20_000_000

Case = tuple[Sequence[Message], bool]
"""Messages, and whether an answer is asked for."""


@dataclasses.dataclass(frozen=True)
class Refused:
    """A conversation that a template does not render, and what it or the sandbox says of it."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A Jinja template with the special tokens that the files beside it name."""

    source: str
    place: str
    """Its file."""
    tokens: Mapping[str, str]
    """Text of bos_token, eos_token and others, as far as they are named."""

    def render(self, cases: Sequence[Case]) -> list[str | Refused]:
        """Each case as text, or why there is none.

        Raises UserError where the template does not end within 5 seconds or takes more than 1 GiB of memory.
        """
        request = {
            "source": self.source,
            "variables": dict(self.tokens),
            "cases": [{"messages": list(messages), "add_generation_prompt": prompt} for messages, prompt in cases],
            "seconds": _SECONDS,
            "memory": _MEMORY,
            "characters": _CHARACTERS,
        }
        # -P: the program's own folder, whose files have common names, is no place to import from.
        command = [sys.executable, "-P", str(Path(renderer.__file__))]
        content = json.dumps(request).encode()
        try:
            done = subprocess.run(command, input=content, capture_output=True, timeout=_WALL_SECONDS)
            ended = done.returncode >= 0
        except subprocess.TimeoutExpired:
            ended = False
        if not ended:
            raise UserError(
                f"the chat template in {self.place} was stopped: it needs more than {_SECONDS} seconds or "
                f"{_MEMORY >> 20} MiB of memory; correct it, or name a known chat format."
            )
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace"))
        answers = json.loads(done.stdout)
        return [answer["text"] if "text" in answer else Refused(answer["error"].rstrip(".")) for answer in answers]


def of_folder(folder: Path) -> Template | None:
    """The chat template in a model's folder, chosen as transformers does; None where there is none.

    chat_template.jinja wins over the key of tokenizer_config.json, that one over chat_template.json, and of several in
    a key the one named "default". Raises UserError for a damaged file.
    """
    path, content = folder / CONFIG, _object(folder / CONFIG)
    place, source = str(folder / FILE), content.get("chat_template")
    if (folder / FILE).is_file():
        source = _text(folder / FILE)
    else:
        if source is None:
            path = folder / LEGACY
            source = _object(path).get("chat_template")
        if source is None:
            return None
        place = str(path)
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}
            source = named.get("default")
        if not isinstance(source, str):
            raise UserError(f"{path}: chat_template is neither a text nor a list with one named default: correct it.")
    tokens: dict[str, str] = {}
    for values in (_object(folder / TOKENS), content):
        for name, token in values.items():
            text = token.get("content") if isinstance(token, Mapping) else token
            if name.endswith("_token") and isinstance(text, str):
                tokens[name] = text
    return Template(source, place, tokens)


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again.") from error
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it, or fetch it again.") from error


def _talk(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": text} for role, text in turns]


_SYSTEM = ("system", "Answer  briefly.\n")
_FIRST = ("user", " What is 7 × 8?\n\nShow how. ")
_ANSWER = (ANSWERS, "<b>56</b> &amp; {{ 7 * 8 }} {% if x %}\"'\\n\n")
_SECOND = ("user", "发热三天，体温39度。")
# The first shows the default system turn. Turns alternate, as many a template demands.
PROBES: tuple[Case, ...] = (
    (_talk(_FIRST), True),
    (_talk(_FIRST, _ANSWER, _SECOND), True),
    (_talk(_SYSTEM, _SECOND), True),
    (_talk(_SYSTEM, _SECOND, (ANSWERS, "好。"), _FIRST, _ANSWER, ("user", "Thanks!")), True),
    (_talk(_FIRST, _ANSWER), False),
    (_talk(_SYSTEM, _FIRST, _ANSWER, _SECOND, (ANSWERS, "See a doctor.")), False),
)


def recognise(template: Template, formats: Sequence[ChatFormat], own: Mapping[Own, str]) -> list[ChatFormat]:
    """The formats that render every probe as the template does, each with the template's own default system turn.

    Where a conversation ends with an answer, the template may leave out what follows the answer's end mark, or its
    text where the next turn's mark ends it. Raises UserError where the template renders none of the probes.
    """
    rendered = template.render(PROBES)
    refused = [text for text in rendered if isinstance(text, Refused)]
    if len(refused) == len(rendered):
        raise UserError(
            f"the chat template in {template.place} renders no conversation ({refused[0].reason}): correct it, or name "
            f"a known chat format."
        )
    found = []
    for known in formats:
        candidate = _with_default(known, rendered[0], own)
        if candidate is not None and all(
            isinstance(text, str) and _agrees(candidate, own, probe, text)
            for probe, text in zip(PROBES, rendered, strict=True)
        ):
            found.append(candidate)
    return found


def _with_default(known: ChatFormat, rendered: str | Refused, own: Mapping[Own, str]) -> ChatFormat | None:
    """The format with the default system turn that stands in the rendered first probe; None where it cannot be read."""
    bare = dataclasses.replace(known, default_system=None)
    opening = bare.text([], own)
    rest = bare.text(PROBES[0][0], own, add_generation_prompt=True).removeprefix(opening)
    if not isinstance(rendered, str) or not rendered.startswith(opening) or not rendered.endswith(rest):
        return None
    first = rendered[len(opening) : len(rendered) - len(rest)]
    if not first:
        return bare
    if "system" not in known.turns:
        return None
    mark = "\0"
    before, _, after = bare.text(_talk(("system", mark)), own).removeprefix(opening).partition(mark)
    if len(first) < len(before) + len(after) or not first.startswith(before) or not first.endswith(after):
        return None
    return dataclasses.replace(known, default_system=first[len(before) : len(first) - len(after)])


def _agrees(candidate: ChatFormat, own: Mapping[Own, str], probe: Case, rendered: str) -> bool:
    messages, prompt = probe
    whole = candidate.text(messages, own, add_generation_prompt=prompt)
    if prompt:
        return rendered == whole
    slots = candidate.slots(messages)
    closes = candidate.answers_close
    last = max(i for i, slot in enumerate(slots) if slot.is_content or (closes and slot.answer is not None))
    least = "".join(written(slot, own) for slot in slots[: last + 1])
    return whole.startswith(rendered) and rendered.startswith(least)
