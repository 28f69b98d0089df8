"""Rewards: from a prompt, a response and a reference answer to a number."""

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from m1jax.config.domains import nearest
from m1jax.errors import UserError
from m1jax.grading import numbers, same


class Case(NamedTuple):
    """What a reward looks at."""

    prompt: str
    response: str
    reference: str
    """The answer of the conversation that the prompt is of."""
    prompt_ids: Sequence[int] = ()
    response_ids: Sequence[int] = ()


Rule = Callable[[str, str, str], Any]
"""(prompt, response, reference) to a number."""
Reward = Callable[[Sequence[Case]], Sequence[Any]]
"""Cases to a number each."""


def exact(prompt: str, response: str, reference: str) -> float:
    """1 where the response is the reference (m1jax.grading.same), else 0; for choices too, whose text is the answer."""
    del prompt
    return float(same.exact(response, reference))


def words(prompt: str, response: str, reference: str) -> float:
    """The F1 of the words of response and reference, each as often as it occurs (SQuAD, arXiv 1606.05250)."""
    del prompt
    own, right = (Counter(same.plain(text).split()) for text in (response, reference))
    return 2 * sum((own & right).values()) / max(sum(own.values()) + sum(right.values()), 1)


def number(prompt: str, response: str, reference: str) -> float:
    """1 where the last number with its unit is the reference's within 1% (m1jax.grading.numbers), else 0."""
    del prompt
    return float(numbers.equal(response, reference))


def form(prompt: str, response: str, reference: str) -> float:
    """1 for one line that is not empty and has no word four times in a row, else 0."""
    del prompt, reference
    said = response.split()
    repeats = any(len(set(said[i : i + 4])) == 1 for i in range(len(said) - 3))
    return float(bool(response.strip()) and "\n" not in response.strip() and not repeats)


def length(prompt: str, response: str, reference: str) -> float:
    """1 for a response as long as the reference in characters, less by the share that it is shorter or longer."""
    del prompt
    return max(0.0, 1.0 - abs(len(response.strip()) - len(reference.strip())) / max(len(reference.strip()), 1))


RULES: Mapping[str, Rule] = {"exact": exact, "words": words, "number": number, "form": form, "length": length}
"""Rules by the names that `policy.rewards` gives."""


class Entities:
    """A reward for naming an entity of an ontology: 1 for the reference's own, ½ for a parent of it, else 0.

    `names` gives the ids that a name or synonym may mean, `parents` the ids directly above an id.
    """

    def __init__(self, names: Mapping[str, Sequence[str]], parents: Mapping[str, Sequence[str]]) -> None:
        self._names: dict[str, set[str]] = {}
        for name, ids in names.items():
            self._names.setdefault(same.plain(name), set()).update(ids)
        self._parents = parents

    def __call__(self, prompt: str, response: str, reference: str) -> float:
        """The reward of one response."""
        del prompt
        if same.exact(response, reference):
            return 1.0
        said = self._names.get(same.plain(response), set())
        right = self._names.get(same.plain(reference), set())
        if said & right:
            return 1.0
        return 0.5 if any(said.intersection(self._parents.get(one, ())) for one in right) else 0.0


def named(name: str) -> Reward:
    """The reward that a name of `policy.rewards` means: a rule's, or MODULE:FUNCTION with a rule's arguments.

    Raises UserError where there is none.
    """
    if name in RULES:
        return of_rule(RULES[name])
    module, colon, function = name.partition(":")
    if not colon:
        raise UserError(
            f"config key policy.rewards: {name!r} is unknown (did you mean {nearest(name, RULES)!r}?): use "
            f"{', '.join(RULES)}, entity, model:FOLDER or MODULE:FUNCTION."
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"config key policy.rewards: {name!r} cannot be read: {error}.") from error
    return of_rule(found)


def of_rule(rule: Rule) -> Reward:
    """A rule asked about one case after the other."""
    return lambda cases: [rule(case.prompt, case.response, case.reference) for case in cases]


def each(rewards: Mapping[str, Reward], cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """What every reward gives, float32, one number a case.

    Raises UserError, naming the reward and the prompt, for a wrong count and for what is not a finite number.
    """
    return {name: checked(name, reward(cases), cases) for name, reward in rewards.items()}


def total(found: Mapping[str, np.ndarray], weights: Mapping[str, float], count: int) -> np.ndarray:
    """The weighted sum (count,) of what `each` gave, float32; a reward of weight 0 is only reported."""
    return sum((np.float32(weights[name]) * values for name, values in found.items()), np.zeros(count, np.float32))


def checked(name: str, values: Any, cases: Sequence[Case]) -> np.ndarray:
    """The numbers of one reward, float32, if they are one finite number a case."""
    numbers_ = list(values) if values is not None else []
    if len(numbers_) != len(cases):
        raise UserError(f"reward {name!r} gave {len(numbers_)} numbers for {len(cases)} responses: give one for each.")
    for value, case in zip(numbers_, cases, strict=True):
        if not isinstance(value, Real | np.number | np.ndarray) or not math.isfinite(float(value)):
            asked = re.sub(r"\s+", " ", case.prompt)[-80:]
            raise UserError(
                f"reward {name!r} gave {value!r} for the prompt that ends {asked!r}: a reward is a finite number."
            )
    return np.asarray(numbers_, np.float32).reshape(len(cases))
