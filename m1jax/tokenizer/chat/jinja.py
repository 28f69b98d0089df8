"""A chat format as a Jinja template, for the `apply_chat_template` of transformers."""

from collections.abc import Sequence

from m1jax.tokenizer.chat.formats import ANSWERS, ChatFormat, Own, Piece, Special, upto_mark

# Rendered text is tokenised as a whole, so a special token inside a message would act as one: it is refused.
_CHECKS = """\
{%- set number, role, content = loop.index, message['role'], message['content'] -%}
{%- if role not in before -%}
{{- raise_exception('role ' ~ role ~ ' is unknown: use one of ' ~ before | join(', ') ~ '.') -}}
{%- endif -%}
{%- if content is defined and content is sequence and content is not string and content is not mapping -%}
{%- set joined = namespace(text='') -%}
{%- for part in content -%}
{%- if part is not mapping or part['type'] != 'text' or part['text'] is not string -%}
{{- raise_exception('the content of message ' ~ number ~ ' is no text.') -}}
{%- endif -%}
{%- set joined.text = joined.text ~ part['text'] -%}
{%- endfor -%}
{%- set content = joined.text -%}
{%- elif content is not string -%}
{{- raise_exception('the content of message ' ~ number ~ ' is no text.') -}}
{%- endif -%}
{%- for token in special_tokens -%}
{%- if token in content -%}
{{- raise_exception('message ' ~ number ~ ' holds the special token ' ~ token ~ ': take it out.') -}}
{%- endif -%}
{%- endfor -%}
"""


def template(chat_format: ChatFormat, special_tokens: Sequence[str]) -> str:
    """The format as a template that renders what `ChatFormat.text` gives.

    The blocks `generation` hold what the model writes: every answer and the mark that ends it, as
    `m1jax.tokenizer.chat.Part.answer` says. The template refuses an unknown role, a content that is neither text
    nor a list of text parts, and one that holds one of `special_tokens`.
    """
    before, rest, after = {}, {}, {}
    for role, turn in chat_format.turns.items():
        # Only where an answer's own turn does not end it is the mark of the next one written apart.
        before[role], rest[role] = (turn.before, ()) if chat_format.answers_close else upto_mark(turn.before)
        after[role] = turn.after
    lines = [
        f"{{%- set before = {_table(before)} -%}}\n",
        f"{{%- set rest = {_table(rest)} -%}}\n",
        f"{{%- set after = {_table(after)} -%}}\n",
        f"{{%- set special_tokens = {list(special_tokens)!r} -%}}\n",
        _put(_expression(chat_format.opening)),
    ]
    if chat_format.default_system is not None:
        system = f"before['system'] ~ rest['system'] ~ {chat_format.default_system!r} ~ after['system']"
        lines.append("{%- if not messages or messages[0]['role'] != 'system' -%}\n" + _put(system) + "{%- endif -%}\n")
    lines += ["{%- for message in messages -%}\n", _CHECKS, _beginning(chat_format, "role", "loop.previtem")]
    lines += ["{%- if role == 'assistant' -%}\n", *_answer(chat_format), "{%- else -%}\n"]
    lines += [_put("content ~ after[role]"), "{%- endif -%}\n", "{%- endfor -%}\n"]
    lines += ["{%- if add_generation_prompt -%}\n", _beginning(chat_format, f"'{ANSWERS}'", "messages[-1]")]
    return "".join([*lines, "{%- endif -%}\n"])


def _beginning(chat_format: ChatFormat, role: str, previous: str) -> str:
    """What is written before a turn's text; its mark ends the answer before it, where that one's own turn does not."""
    if chat_format.answers_close:
        return _put(f"before[{role}]")
    return (
        f"{{%- if {previous} is defined and {previous}['role'] == '{ANSWERS}' -%}}\n"
        + _written(f"before[{role}]")
        + "{%- else -%}\n"
        + _put(f"before[{role}]")
        + "{%- endif -%}\n"
        + _put(f"rest[{role}]")
    )


def _answer(chat_format: ChatFormat) -> list[str]:
    """An answer's text and what is written behind it."""
    end, rest = upto_mark(chat_format.turns[ANSWERS].after)
    lines = [_written(" ~ ".join(["content", *map(_literal, end)])), _put(_expression(rest))]
    if chat_format.closing:
        end, rest = ((), chat_format.closing) if chat_format.answers_close else upto_mark(chat_format.closing)
        lines += ["{%- if loop.last and not add_generation_prompt -%}\n", _written(_expression(end))]
        lines += [_put(_expression(rest)), "{%- endif -%}\n"]
    return lines


def _put(expression: str) -> str:
    return f"{{{{- {expression} -}}}}\n" if expression else ""


def _written(expression: str) -> str:
    """What the model itself writes, for masks in training."""
    return f"{{%- generation -%}}{{{{- {expression} -}}}}{{%- endgeneration -%}}\n" if expression else ""


def _expression(pieces: Sequence[Piece]) -> str:
    """Pieces as a Jinja expression; empty for none."""
    return " ~ ".join(map(_literal, pieces))


def _literal(piece: Piece) -> str:
    """Python's literals of text are Jinja's too."""
    if isinstance(piece, Own):
        return piece.value
    return repr(piece.text if isinstance(piece, Special) else piece)


def _table(pieces: dict[str, tuple[Piece, ...]]) -> str:
    return "{" + ", ".join(f"{role!r}: {_expression(side) or repr('')}" for role, side in pieces.items()) + "}"
