"""Templates of questions as data: what one may say, the shipped ones (templates.json), and a user's own file.

A file is a list of objects (or {"templates": [...]}) with the fields of Template. See docs/synthesis.md.
"""

import dataclasses
import json
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m1jax.config.domains import nearest
from m1jax.errors import UserError
from m1jax.text.synthesis.ontologies import ONTOLOGIES

NAMES = ("name", "name:en", "name:zh", "synonym", "variant")
OWN = (*NAMES, "definition", "code")
"""What an entity has itself; `name` is that of the template's language, `variant` a synonym or an inclusion term."""
OTHERS = ("parent", "phenotype", "mention")
"""Names of other entities that it leads to; `mention`: those of the source `of` that its definition names."""
FORMS = ("choice", "yes_no", "text", "list")
LANGUAGES = ("en", "zh")
LESSONS = "explanation"
"""The kind of conversations that a teacher writes."""
_FILE = re.compile(r"\w[\w -]*")
_MOST_CHOICES = 26
"""A letter each."""
_SHIPPED = Path(__file__).with_name("templates.json")
_IN_QUESTIONS = {"choice": {"given"}, "yes_no": {"given", "answer"}, "text": {"given"}, "list": {"given", "count"}}
_IN_ANSWERS = {"answer", "name", "code"}


@dataclasses.dataclass(frozen=True)
class Template:
    """A kind of question: from what is `given` of an entity to what is `asked`.

    `questions` and `answers` are phrasings, of which each item gets one. They hold {given}; of a yes-or-no question
    also {answer}, which is right or wrong; of a list {count}. Answers hold {answer}, {name} and {code}.
    """

    id: str
    kind: str
    given: str
    asked: str
    form: str
    questions: tuple[str, ...]
    answers: tuple[str, ...] = ("{answer}",)
    """Of forms text and list; a yes-or-no question has two: for yes and for no."""
    language: str = "en"
    sources: tuple[str, ...] = ()
    """Whose entities it asks about; empty: all."""
    of: str = ""
    """The source of a `mention`."""
    choices: int = 4
    """Answers to choose from, for form choice."""
    count: int = 5
    """Most entries of a list; also of phenotypes that are given."""

    @property
    def is_test(self) -> bool:
        """Whether it makes test questions: those with choices."""
        return self.form in ("choice", "yes_no")


def shipped() -> tuple[Template, ...]:
    """The templates that come with m1jax."""
    return read(_SHIPPED)


def with_own(path: Path | None) -> tuple[Template, ...]:
    """The shipped templates, and a user's own where a file is given; raises UserError as `read` does."""
    known = shipped()
    if path is None:
        return known
    own = read(path)
    if double := {template.id for template in known} & {template.id for template in own}:
        raise UserError(f"{path}: the id {min(double)!r} is that of a shipped template: choose another id.")
    return (*known, *own)


def read(path: Path) -> tuple[Template, ...]:
    """The templates of a file; raises UserError that names the file, the template, the field and what is allowed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give a JSON file of templates.") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON file ({error}): write a list of templates, see docs/synthesis.md."
        ) from error
    if isinstance(content, Mapping) and set(content) == {"templates"}:
        content = content["templates"]
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} holds no list of templates: write [{{...}}, ...], see docs/synthesis.md.")
    made = [_template(entry, f"{path}: template {number}") for number, entry in enumerate(content, 1)]
    seen: set[str] = set()
    for template in made:
        if template.id in seen:
            raise UserError(f"{path}: the id {template.id!r} is used twice: give every template its own.")
        seen.add(template.id)
    return tuple(made)


def _template(entry: Any, where: str) -> Template:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} must be an object, got {entry!r}.")
    if isinstance(entry.get("id"), str):
        where += f" ({entry['id']})"
    fields = {field.name: field for field in dataclasses.fields(Template)}
    for name in entry:
        if name not in fields:
            raise UserError(f"{where} has an unknown field {name!r}: did you mean {nearest(name, fields)!r}?")
    values = {}
    for name, field in fields.items():
        if name in entry:
            values[name] = _value(entry[name], field.type, f"{where}: {name}")
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{where} has no field {name!r}: add it.")
    if entry.get("form") == "yes_no" and "answers" not in entry:
        raise UserError(f"{where} has no field 'answers': a yes-or-no question needs two, for yes and for no.")
    template = Template(**values)
    _check(template, where)
    return template


def _value(value: Any, kind: Any, where: str) -> Any:
    """A field's value: a text, a whole number of 1 or more, or a list of texts that are not empty."""
    if kind not in (int, str):
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise UserError(f"{where} must be a list of texts, got {value!r}.")
        return tuple(value)
    if kind is int:
        if type(value) is not int or value < 1:
            raise UserError(f"{where} must be a whole number of 1 or more, got {value!r}.")
        return value
    if not isinstance(value, str):
        raise UserError(f"{where} must be a text, got {value!r}.")
    return value


def _check(template: Template, where: str) -> None:
    """Raises UserError where the fields do not fit each other."""
    sources = [ontology.name for ontology in ONTOLOGIES]
    _one_of(template.form, FORMS, f"{where}: form")
    _one_of(template.language, LANGUAGES, f"{where}: language")
    _one_of(template.given, [*OWN, "parent", "phenotype"], f"{where}: given")
    _one_of(template.asked, [*OWN, *OTHERS], f"{where}: asked")
    for source in template.sources:
        _one_of(source, sources, f"{where}: a source")
    if not template.id.strip() or not template.kind.strip():
        raise UserError(f"{where} has an empty id or kind: name both.")
    if template.given == template.asked:
        raise UserError(f"{where} gives what it asks for ({template.given!r}): choose another `given` or `asked`.")
    if template.asked == "mention" and template.given != "definition":
        raise UserError(f"{where} asks for a mention, so `given` must be 'definition', got {template.given!r}.")
    if template.asked == "mention":
        _one_of(template.of, sources, f"{where}: of")
    elif template.of:
        raise UserError(f"{where}: `of` belongs to a template that asks for a mention: leave it out.")
    if template.kind == LESSONS:
        raise UserError(f"{where}: the kind {LESSONS!r} is that of a teacher's lessons: choose another name.")
    if not _FILE.fullmatch(template.kind):
        raise UserError(
            f"{where}: the kind {template.kind!r} is the name of a file: use letters, digits, _, - and spaces."
        )
    if template.form == "choice" and not 2 <= template.choices <= _MOST_CHOICES:
        limit = "2 or more" if template.choices < 2 else f"at most {_MOST_CHOICES}"
        raise UserError(f"{where}: choices must be {limit}, got {template.choices}.")
    if template.form == "yes_no" and len(template.answers) != 2:
        raise UserError(f"{where}: a yes-or-no question needs two answers, for yes and for no.")
    if not template.questions:
        raise UserError(f"{where}: questions must be a list of at least one text.")
    needed = {"given", "answer"} if template.form == "yes_no" else {"given"}
    for text in template.questions:
        _placeholders(text, _IN_QUESTIONS[template.form], needed, f"{where}: question {text!r}")
    for text in template.answers if template.form != "choice" else ():
        allowed, needed = (_IN_ANSWERS, {"answer"}) if template.form != "yes_no" else (set(), set())
        _placeholders(text, allowed, needed, f"{where}: answer {text!r}")


def _one_of(value: str, allowed: Iterable[str], where: str) -> None:
    known = list(allowed)
    if value not in known:
        raise UserError(f"{where} must be one of {', '.join(known)}, got {value!r}.")


def _placeholders(text: str, allowed: set[str], needed: set[str], where: str) -> None:
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UserError(
            f"{where} has a brace that nothing closes ({error}): write {{{{ or }}}} for a brace."
        ) from error
    if found - allowed:
        said = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "nothing"
        raise UserError(f"{where} holds {{{min(found - allowed)}}}: only {said} is filled in here.")
    if needed - found:
        raise UserError(f"{where} lacks {{{min(needed - found)}}}: say where it goes.")
