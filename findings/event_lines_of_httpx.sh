#!/bin/bash
# httpx 0.28: the lines that a response gives are not the lines of server-sent events.
#
# Expected: iter_lines() of a text/event-stream ends lines where that format does, at line feeds and carriage returns, so
# that a JSON text without them is one line (JSON lets U+0085, U+2028 and U+2029 stand within a string as they are).
# Seen: lines end at those characters too, wherever the server wrote them unescaped. The first part is no JSON, and the
# rest does not begin with "data:". A language model's tokens hold such characters, so a client that works for thousands
# of answers fails at one.
# What helps: a server that escapes them (m1 serve does); a client that splits the bytes at line feeds by itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q httpx==0.28.1
cat >"$folder/lines.py" <<'PYTHON'
import json
import platform

import httpx

for character, splits in (("\u0085", True), ("\u2028", True), ("\u2029", True), ("\u00a0", False), ("\u3000", False)):
    event = "data: " + json.dumps({"text": f"a{character}b"}, ensure_ascii=False)
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    response = httpx.Response(200, headers=headers, content=f"{event}\n\n".encode())
    lines = [line for line in response.iter_lines() if line]
    escaped = httpx.Response(200, headers=headers, content=(json.dumps({"text": f"a{character}b"}) + "\n").encode())
    print(f"U+{ord(character):04X}: {len(lines)} lines as it is, {len(list(escaped.iter_lines()))} where it is escaped")
    assert (len(lines) == 2) is splits and len(list(escaped.iter_lines())) == 1, lines
print(f"Python {platform.python_version()}, httpx {httpx.__version__}")
PYTHON
"$folder/venv/bin/python" "$folder/lines.py"
