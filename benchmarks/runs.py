"""Runs of this checkout that benchmarks make: a shipped config with changes, and verbs."""

import os
import pprint
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from same_losses import command

HERE = Path(__file__).parents[1]


def config_text(shipped: str, changes: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> str:
    """A config file: the shipped one with `changes` by dotted key and only the named stages, each with its changes."""
    lines = []
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        lines.append(f"    {'.'.join(['config', *([section] if section else [])])}[{key!r}] = {pprint.pformat(value)}")
    return "\n".join(
        [
            "import runpy",
            "",
            "from ml_collections import ConfigDict",
            "",
            "",
            "def get_config():",
            f"    config = runpy.run_path({str(HERE / 'configs' / shipped)!r} + '.py')['get_config']()",
            "    config = ConfigDict(config.to_dict(), convert_dict=False)",
            *lines,
            f"    changed = { ({name: dict(of) for name, of in stages.items()})!r}",
            "    stages = [dict(stage) for stage in config.stages if stage['name'] in changed]",
            "    config.stages = tuple({**stage, **changed[stage['name']]} for stage in stages)",
            "    return config",
            "",
        ]
    )


def verb(*words: str) -> str:
    """Runs a verb of this checkout; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}
    m1 = [sys.executable, *command(HERE)[1:]]
    done = subprocess.run([*m1, *words], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"m1 {' '.join(words)} failed.")
    return done.stdout


def share(found: Mapping[str, Any], value: str = "accuracy") -> str:
    """A share and its interval in percent."""
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found[value]:.1f} ({low:.1f}, {high:.1f})"
