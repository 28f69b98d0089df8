"""Which settings of a started run a config changes; changes of its data are compared by the curriculum's record."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from m1jax.config.schema import RunConfig, to_dict
from m1jax.errors import UserError

_LEARNED = (
    "objective", "preference", "reward", "policy", "optimizer", "train.average_decay", "train.loss_mean",
    "train.lora.alpha",
)  # fmt: skip
"""Keys, or groups of keys, of the whole run that decide what is learned."""
_FIXED = ("train.lora.rank", "train.lora.targets", "train.lora.layers", "train.trained", "train.frozen_dtype")
"""Keys that decide which arrays a checkpoint has."""
_WHOLE = ("policy.rewards", "policy.methods")
"""Keys whose own keys are the user's names: one more or less is a change."""
_OF_A_STAGE = ("learning_rate", "rope_base", "skip_steps")
_NOTED = (
    "mesh", "model.attention", "model.compute_dtype", "train.accumulation", "train.loss_chunk", "train.remat",
    "train.unroll", "train.initial",
)  # fmt: skip
"""Keys that only change rounding, and the folder of the first parameters, which a run that was started does not read
again."""


@dataclasses.dataclass(frozen=True)
class Changes:
    """What differs between two configs of a run, in words."""

    learned: list[str]
    """Settings that decide what is learned: of the whole run, of stages that were started, of later stages."""
    noted: list[str]
    """Settings that change rounding at most."""
    fixed: list[str] = dataclasses.field(default_factory=list)
    """Settings that make a checkpoint one of other arrays: a run keeps them to its end."""


def compare(saved: Mapping[str, Any], config: RunConfig) -> Changes:
    """Compares the config of a checkpoint (as `to_dict` made it) with the one that continues it.

    A key that only one of the two versions of m1jax has is ignored. Stages are compared in order.
    """
    current = to_dict(config)
    learned = list(_of_keys(saved, current, _LEARNED))
    for old, new in zip(saved.get("stages", []), current["stages"], strict=False):
        learned += [f"stage {old.get('name')!r}: {text}" for text in _of_keys(old, new, _OF_A_STAGE)]
    return Changes(learned, list(_of_keys(saved, current, _NOTED)), list(_of_keys(saved, current, _FIXED)))


def check(saved: Mapping[str, Any], config: RunConfig, step: int, amend: bool = False) -> Changes:
    """`compare` for a run that continues after `step` steps; raises UserError if what is learned would change.

    `amend` accepts the change, if any step is left, but for settings that decide which parameters are trained.
    """
    found = compare(saved, config)
    left = step < config.total_steps
    if found.fixed:
        raise UserError(
            f"the checkpoint of step {step} was trained with other settings: {'; '.join(found.fixed)}: restore them or "
            f"start a new run in another folder, which may begin from this one (train.initial)."
        )
    if found.learned and not (amend and left):
        remedy = "restore them or start a new run in another folder"
        if left:
            remedy = "restore them, start a new run in another folder, or accept the new ones with --amend"
        raise UserError(
            f"the checkpoint of step {step} was trained with other settings: {'; '.join(found.learned)}: {remedy}."
        )
    return found


def _of_keys(old: Mapping[str, Any], new: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        yield from _differences(key, _at(old, key), _at(new, key))


def _at(tree: Any, dotted: str) -> Any:
    """The value of a key, None where there is none."""
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping) and path not in _WHOLE:
        for name in new:
            if name in old:
                yield from _differences(f"{path}.{name}", old[name], new[name])
    elif old is not None and new is not None and old != new:
        yield f"{path} was {'empty' if old == '' else old}, is {'empty' if new == '' else new}"
