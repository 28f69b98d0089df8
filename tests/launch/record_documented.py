"""Writes documented.json: the commands and flags of the real gcloud and xpk that the stand-ins accept.

    python -m tests.launch.record_documented PYTHON_WITH_XPK

needs gcloud on the path (its parser answers without a network or an account) and a Python that has xpk installed.
tests/launch/test_documented.py compares the committed file with a gcloud of the same version where one is installed.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

FILE = pathlib.Path(__file__).with_name("documented.json")
# The flags that gcloud's help calls gcloud-wide; its parser knows further, undocumented ones.
WIDE = [
    "--access-token-file",
    "--account",
    "--billing-project",
    "--configuration",
    "--flags-file",
    "--flatten",
    "--format",
    "--help",
    "--impersonate-service-account",
    "--log-http",
    "--project",
    "--quiet",
    "--trace-token",
    "--user-output-enabled",
    "--verbosity",
]
SWITCHES = ("--help", "--log-http", "--quiet", "--user-output-enabled")
GCLOUD = (
    "billing projects link",
    "compute tpus queued-resources create",
    "compute tpus queued-resources delete",
    "compute tpus queued-resources describe",
    "compute tpus queued-resources list",
    "compute tpus queued-resources ssh",
    "compute tpus tpu-vm describe",
    "container clusters delete",
    "container clusters describe",
    "iam service-accounts add-iam-policy-binding",
    "iam service-accounts create",
    "iam service-accounts describe",
    "logging read",
    "projects add-iam-policy-binding",
    "projects create",
    "projects describe",
    "scheduler jobs create http",
    "scheduler jobs delete",
    "scheduler jobs describe",
    "services enable",
    "storage buckets add-iam-policy-binding",
    "storage buckets create",
    "storage buckets describe",
    "storage cat",
    "storage cp",
)
XPK = ("cluster create", "cluster delete", "storage attach", "workload create", "workload delete", "workload list")
XPK_DUMP = """
import argparse, json, sys
from xpk.parser.core import set_parser
top = argparse.ArgumentParser(prog="xpk"); set_parser(top)
def find(parser, words):
    for word in words:
        actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parser = actions[0].choices[word]
    return parser
found = {}
for command in json.loads(sys.argv[1]):
    parser = find(top, command.split())
    flags = {}
    for action in parser._actions:
        for option in action.option_strings:
            value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
            flags[option] = {"value": value, "required": action.required}
    found[command] = {
        "flags": flags,
        "positionals": [a.dest for a in parser._actions if not a.option_strings],
        "exactly_one": [
            sorted(o for a in group._group_actions for o in a.option_strings)
            for group in parser._mutually_exclusive_groups if group.required
        ],
    }
print(json.dumps(found))
"""


def gcloud(*words):
    """Standard output of a gcloud command that knows no account and asks nothing."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {
            "CLOUDSDK_CONFIG": folder,
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        }
        done = subprocess.run(
            ["gcloud", *words], env={**os.environ, **quiet}, capture_output=True, text=True, check=False
        )
    return done.stdout


def check(command):
    """None where gcloud's own parser accepts a command line, else what it says."""
    told = json.loads(gcloud("meta", "lint-gcloud-commands", f"--command-string={command}"))[0]
    return None if told["success"] else told["error_message"]


def _flags(arguments, required, found, exactly_one):
    for argument in arguments:
        group = argument.get("group")
        if group:
            if group.get("mutex") and group.get("required"):
                exactly_one.append(sorted(_names(group["arguments"])))
            _flags(group["arguments"], required and not group.get("mutex"), found, exactly_one)
        elif argument.get("positional"):
            found["positionals"].append(argument["name"])
        elif not argument["name"].startswith("-"):
            needed = bool(argument.get("required")) and required
            found["flags"][f"--{argument['name']}"] = {"value": argument.get("type") != "bool", "required": needed}


def _names(arguments):
    for argument in arguments:
        if "group" in argument:
            yield from _names(argument["group"]["arguments"])
        elif not argument.get("positional"):
            yield f"--{argument['name']}"


def of_gcloud(command):
    """Flags, positionals and one-of groups of one gcloud command."""
    told = json.loads(gcloud("meta", "lint-gcloud-commands", f"--command-string=gcloud {command} --help"))[0]
    found = {"flags": {}, "positionals": [], "exactly_one": []}
    _flags(told["args_structure"]["arguments"], True, found, found["exactly_one"])
    text = gcloud(*command.split(), "--help")
    shown = {flag: what for flag, what in found["flags"].items() if flag not in WIDE and f"{flag}" in text}
    found["flags"] = dict(sorted(shown.items()))
    found["page"] = "https://cloud.google.com/sdk/gcloud/reference/" + command.replace(" ", "/")
    return found


def gcloud_version():
    return gcloud("version", '--format=value("Google Cloud SDK")').strip()


def main(python):
    version = [python, "-c", "import importlib.metadata as m; print(m.version('xpk'))"]
    xpk_version = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    dump = subprocess.run([python, "-c", XPK_DUMP, json.dumps(XPK)], capture_output=True, text=True, check=True)
    xpk = json.loads(dump.stdout)
    for entry in xpk.values():
        entry["page"] = f"https://pypi.org/project/xpk/{xpk_version}/"
    wide = {flag: {"value": flag not in SWITCHES, "required": False} for flag in WIDE}
    tools = {
        "gcloud": (gcloud_version(), wide, {command: of_gcloud(command) for command in GCLOUD}),
        "xpk": (xpk_version, {}, xpk),
    }
    lines = [
        f'"{tool}": {{"version": "{version}", "wide": {json.dumps(flags)}, "commands": {{\n'
        + ",\n".join(f'"{name}": {json.dumps(entry, sort_keys=True)}' for name, entry in commands.items())
        + "\n}}"
        for tool, (version, flags, commands) in tools.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
