"""Renders a chat template in jinja2's sandbox; a program of its own, which imports nothing of m1jax.

Whoever wrote the template decides how long it runs and how much memory it takes, and no Python program can stop a
thread of its own, so this one limits itself and is ended from outside. It reads from standard input a JSON object
{"source", "variables", "cases": [{"messages", "add_generation_prompt"}], "seconds", "memory", "characters"} and writes
a list with {"text"} or {"error"} for each case. The environment is that of transformers' `apply_chat_template`.
"""

import contextlib
import datetime
import json
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils


class _Generation(jinja2.ext.Extension):
    """The block `generation`, which marks what a model writes; its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox with what transformers offers to templates."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals = {
        "range": made.globals["range"],  # the sandbox's, of at most 100,000 numbers
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": jinja2.utils.Namespace,
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return made


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def rendered(request: dict[str, Any]) -> list[dict[str, str]]:
    """{"text"} or {"error"} of each case."""
    try:
        template = environment().from_string(request["source"])
    except Exception as error:  # noqa: BLE001 (a stranger's program)
        return [{"error": _told(error)}] * len(request["cases"])
    found = []
    for case in request["cases"]:
        try:
            text = template.render(**request["variables"], **case, tools=None, documents=None)
            if len(text) > request["characters"]:
                raise OverflowError(f"it writes more than {request['characters']:,} characters")
            found.append({"text": text})
        except Exception as error:  # noqa: BLE001 (a stranger's program)
            found.append({"error": _told(error)})
    return found


def _told(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def main() -> None:
    """Reads the request, limits itself, answers."""
    request = json.load(sys.stdin)
    # Not every system has these limits, or lets them be set; the time is limited from outside as well.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    json.dump(rendered(request), sys.stdout)


if __name__ == "__main__":
    main()
