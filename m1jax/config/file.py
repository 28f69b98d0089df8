"""Reads a run's config: an ml_collections file and overrides become the checked dataclasses of config.py."""

import ast
import dataclasses
import difflib
import importlib.util
import math
import pprint
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m1jax.config.checks import check_model, check_run
from m1jax.config.schema import ModelConfig, RunConfig, to_dict
from m1jax.errors import UserError

_RENAMED = {"data.window_documents": "packing_window", "data.general_vocab_size": "vocab_parts"}
"""New names of keys that were renamed, where the spelling alone would lead elsewhere."""


def from_dict(tree: Mapping[str, Any], stage: str | None = None) -> RunConfig:
    """The checked RunConfig of a plain tree; raises UserError naming the key and what is allowed.

    With `stage`, only the stage of that name is checked.
    """
    config = _build(RunConfig, tree, "")
    check_run(config, stage)
    return config


def model_from_dict(tree: Mapping[str, Any]) -> ModelConfig:
    """The checked ModelConfig of a plain tree (as a checkpoint holds it); raises UserError as `from_dict` does."""
    model = _build(ModelConfig, tree, "model.")
    check_model(model)
    return model


def load(path: str | Path, overrides: Iterable[str] = (), stage: str | None = None) -> RunConfig:
    """Reads a config file, applies `key=value` overrides and checks the whole.

    The file defines `get_config()` returning an ml_collections.ConfigDict, or a plain dict; `path` is a file, or the
    name of one of the shipped configs. With `stage`, only the stage of that name is checked. Raises UserError
    for a missing or failing file, an unknown key (naming the nearest known one) and a bad value (naming what is
    allowed).
    """
    tree = _plain(_run_file(_find(path)))
    for override in overrides:
        _apply(tree, override)
    return from_dict(tree, stage)


def save(config: RunConfig, path: Path, about: str) -> None:
    """Writes a config file from which `load` reads the same run; `about` becomes its docstring."""
    tree = textwrap.indent(pprint.pformat(to_dict(config), width=112, sort_dicts=False), "    ").lstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.partial")
    fresh.write_text(f'"""{about}"""\n\n\ndef get_config():\n    return {tree}\n', encoding="utf-8")
    fresh.replace(path)


def _find(path: str | Path) -> Path:
    package = Path(__file__).parents[1]
    # A wheel carries the shipped configs inside the package, a checkout beside it.
    folders = [package / "configs", package.parent / "configs"]
    for candidate in (Path(path), *(folder / f"{path}.py" for folder in folders)):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.stem for folder in folders for p in folder.glob("*.py")))
    raise UserError(f"config file {path} is missing: give a path to a .py file or one of the shipped names ({known}).")


def _run_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"m1jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is not a Python file: a config is a .py file with get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except AttributeError as error:
        raise UserError(
            f"config file {path} failed ({error}): it must define get_config() and set known keys."
        ) from error
    except (SyntaxError, NameError, TypeError, ValueError, ImportError, KeyError) as error:
        remedy = "fix the file"
        if "does not accept dots" in str(error):
            remedy = "get_config() may return a plain dict, whose keys may have dots"
        raise UserError(f"config file {path} failed ({type(error).__name__}: {error}): {remedy}.") from error


def _plain(value: Any) -> Any:
    """ConfigDicts, dicts and sequences as dicts and lists, to any depth."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _apply(tree: Any, override: str) -> None:
    """Sets one `path.to.key=value` in the tree; list entries are addressed by number."""
    dotted, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r} has no '=': write --set path.to.key=value.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *parents, last = dotted.split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {}) if isinstance(node, dict) else _entry(node, name, dotted)
    if isinstance(node, dict):
        node[last] = value
    else:
        _entry(node, last, dotted)
        node[int(last)] = value


def _entry(node: Any, name: str, dotted: str) -> Any:
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    size = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    raise UserError(f"override key {dotted} has no entry {name!r} in {size}: address list entries by number from 0.")


def _build(kind: type, tree: Any, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"config key {path.rstrip('.') or 'root'} must be a group of keys, got {tree!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in tree:
        if name not in fields:
            near = _RENAMED.get(f"{path}{name}") or difflib.get_close_matches(str(name), fields, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown config key {path}{name}: did you mean {path}{near}?")
    values = {}
    for name, spec in fields.items():
        if name in tree:
            limits = {**spec.metadata, "may_be_empty": spec.default == ()}
            values[name] = _value(hints[name], tree[name], path + name, limits)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise UserError(f"config key {path}{name} is missing and has no default: set it.")
    return kind(**values)


def _value(hint: Any, value: Any, path: str, limits: Mapping[str, Any]) -> Any:
    """`value` as the type `hint` asks for, within `limits`; raises UserError naming `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path + ".")
    if origin is tuple:
        if not isinstance(value, list | tuple) or not (value or limits.get("may_be_empty")):
            raise UserError(f"config key {path} must be a non-empty list, got {value!r}.")
        return tuple(_value(arguments[0], entry, f"{path}.{i}", {}) for i, entry in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"config key {path} must be a mapping, got {value!r}.")
        entry_limits = {"low": 0} if arguments[1] is float else {}
        return types.MappingProxyType(
            {str(k): _value(arguments[1], v, f"{path}.{k}", entry_limits) for k, v in value.items()}
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise UserError(f"config key {path} must be of type {hint.__name__}, got {value!r}.")
    if limits.get("choices") and value not in limits["choices"]:
        raise UserError(f"config key {path} must be one of {', '.join(limits['choices'])}, got {value!r}.")
    if limits.get("low") is not None and value < limits["low"]:
        raise UserError(f"config key {path} must be at least {limits['low']}, got {value!r}.")
    return value
