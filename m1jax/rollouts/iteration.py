"""One iteration of policy optimisation: prompts are continued, scored, rewarded, and become the batch of its steps.

Everything is a function of the state, the iteration's number and the run's seed: an iteration that was cut off is made
again with the same tokens.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax.config import MeshConfig, RunConfig, StageConfig
from m1jax.config.policy import PolicyConfig
from m1jax.errors import UserError
from m1jax.generate import Sampling, programs
from m1jax.generate.batching import Batcher, Sampled
from m1jax.model import adapters
from m1jax.objectives.policy import Policy
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from m1jax.rollouts import advantages as estimates
from m1jax.rollouts import rewards as rewarding
from m1jax.rollouts import sequences
from m1jax.rollouts.prompts import Prompt, order
from m1jax.rollouts.rewards import Case, Reward
from m1jax.tokenizer import Tokenizer
from m1jax.train import program as stepping
from m1jax.train.trainer import Trainer

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Collected:
    """The batch of an iteration, all its rows, and what is reported of it by name."""

    columns: Mapping[str, Array]
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Answered:
    """A prompt's continuation, its text and its reward."""

    prompt: Prompt
    sampled: Sampled
    text: str
    reward: float = 0.0
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What each reward of `policy.rewards` gave."""


def means(answered: Sequence[Answered]) -> dict[str, float]:
    """The mean of each reward of `policy.rewards`, by "reward/" and its name."""
    return {f"reward/{name}": float(np.mean([one.parts[name] for one in answered])) for name in answered[0].parts}


SCORED = ("tokens", "targets", "segment_ids", "positions")
"""Columns that scoring needs."""


def rows_at_once(config: RunConfig, stage: StageConfig) -> int:
    """Rows that are scored in one call."""
    return stage.global_batch // config.train.accumulation


def for_sampling(config: RunConfig, own: dict[str, Any]) -> dict[str, Any]:
    """The model's parameters as the sampler wants them, an adapter merged: a pure function, to be compiled."""
    lora = config.train.lora
    return programs.narrowed(config.model, adapters.merged(own, config.model, lora) if lora.rank else own)


def sampler_mesh(mesh: Mesh, tensor: int) -> Mesh | None:
    """The trainer's devices with `policy.sampler_tensor` of them along "tensor"; 0: as they are, None for one device.

    Raises UserError where that many do not divide the devices.
    """
    if mesh.size == 1:
        return None
    return meshes.make(MeshConfig(tensor=tensor), mesh.devices.flatten().tolist()) if tensor else mesh


class _Scored(NamedTuple):
    """`m1jax.objectives.policy.Scored` on the host."""

    log_p: Array
    reference_log_p: Array
    values: Array


class Collector:
    """Makes iterations of a run with the parameters of a trainer's state.

    `ends` are the tokens that end a continuation, `rewards` those of `policy.rewards` by name.
    """

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: Tokenizer,
        ends: Sequence[int],
        prompts: Sequence[Prompt],
        rewards: Mapping[str, Reward],
    ):
        """Compiles nothing yet."""
        assert isinstance(trainer.objective, Policy)
        self._trainer, self._config, self._objective = trainer, trainer.config, trainer.objective
        self._policy: PolicyConfig = trainer.config.policy
        self._tokenizer, self._ends, self._prompts, self._rewards = tokenizer, list(ends), prompts, rewards
        self._between = tuple(tokenizer.encode(self._policy.elo_separator, continues=True))
        self._sampling = Sampling(temperature=self._policy.temperature, top_p=self._policy.top_p)
        self._batcher: Batcher | None = None
        self._narrowed = jax.jit(functools.partial(for_sampling, trainer.config))
        self._sampler_mesh = sampler_mesh(trainer.mesh, self._policy.sampler_tensor)
        self._score = jax.jit(self._objective.score)

    def collect(self, params: Any, iteration: int, stage: StageConfig) -> Collected:
        """The batch of an iteration (from 0); `params` are all parameters before it.

        Raises UserError where a reward is no finite number, and where the sampler's log-probabilities are further from
        the trainer's than `policy.max_mismatch`.
        """
        policy, config = self._policy, self._config
        begun = time.perf_counter()
        chosen = list(order(len(self._prompts), config.seed, iteration * policy.prompts, policy.prompts))
        asked = [self._prompts[i] for i in chosen]
        answered = self._answered(params, stage, asked, policy.samples, self._sampling, self._seed(iteration))
        elo = policy.method(stage.name) == "elo"
        made = self._rows(answered, elo, stage, stage.global_batch * policy.minibatches)
        sampled_seconds = time.perf_counter() - begun
        scored = self._scored(params, made, stage)
        mismatch = self._mismatch(made, scored, answered)
        answered = self._judged(answered)
        rewards = self._rewards_of(answered, made, scored, elo)
        above = made.of(scored.log_p - scored.reference_log_p)
        penalties = [policy.kl_weight * d if policy.kl == "k1_reward" else 0 * d for d in above]
        found = self._advantages(policy.method(stage.name), rewards, penalties, made.of(scored.values))
        columns: dict[str, Array] = {
            **made.columns,
            "advantages": made.spread(found.advantages),
            "returns": made.spread(found.returns),
            "old_log_p": scored.log_p,
            "old_values": scored.values,
            "reference_log_p": scored.reference_log_p,
        }
        if elo:
            columns["advantages"] *= policy.elo_terms != "answer"
            columns["answers"] *= np.float32(policy.elo_terms != "score")
        else:
            columns["answers"] *= 0
        tokens = sum(len(one.sampled.tokens) for one in answered)
        values = {
            "reward": float(rewards.mean()),
            "reward_deviation": float(rewards.std()),
            **means(answered),
            "rollout_kl": float(np.concatenate(above).mean()),
            "length": tokens / len(answered),
            "ended": float(np.mean([one.sampled.finish_reason == "eos" for one in answered])),
            "mismatch": mismatch,
            "rollout_seconds": sampled_seconds,
            "rollout_tokens_per_second": tokens / sampled_seconds,
        }
        return Collected({name: columns[name] for name in self._objective.columns}, values)

    def heldout(self, params: Any, stage: StageConfig, prompts: Sequence[Prompt]) -> list[Answered]:
        """`policy.samples` continuations of each prompt with their rewards (of elo: log π of the answer behind each).

        They are sampled as in training, with the same keys every time.
        """
        answered = self._judged(self._answered(params, stage, prompts, self._policy.samples, self._sampling, 0))
        if self._policy.method(stage.name) != "elo":
            return answered
        size = stage.global_batch * self._policy.minibatches
        per_row = self._policy.prompts * self._policy.samples // size
        found: list[Answered] = []
        for first in range(0, len(answered), size * per_row):
            some = answered[first : first + size * per_row]
            made = self._rows([*some, *[some[-1]] * (size * per_row - len(some))], True, stage, size)
            scored = self._scored(params, made, stage)
            found += [
                dataclasses.replace(one, reward=float(log_p.sum()))
                for one, log_p in zip(some, made.of(scored.log_p, answers=True), strict=False)
            ]
        return found

    def _answered(
        self,
        params: Any,
        stage: StageConfig,
        prompts: Sequence[Prompt],
        samples: int,
        sampling: Sampling,
        seed: int,
    ) -> list[Answered]:
        batcher = self._sampler(params, stage)
        ids = [prompt.ids for prompt in prompts]
        found = batcher.run(
            ids,
            samples,
            max_new_tokens=self._policy.max_new_tokens,
            sampling=sampling,
            seed=seed,
            eos_id=self._ends,
        )
        batcher.release()
        return [
            Answered(prompt, one, self._text(prompt, one))
            for prompt, some in zip(prompts, found, strict=True)
            for one in some
        ]

    def _sampler(self, params: Any, stage: StageConfig) -> Batcher:
        """The batcher on these parameters: laid out for it on the devices, and nothing is compiled again.

        It holds them until `_answered` lets them go: the optimiser's step has that memory for itself.
        """
        own = {name: params[name] for name in self._objective.model_shapes}
        prepared = programs.placed(self._config.model, stage.rope_base, self._narrowed(own), self._sampler_mesh)
        if self._batcher is None:
            self._batcher = Batcher(prepared, self._policy.slots)
        else:
            self._batcher.swap(prepared)
        return self._batcher

    def _text(self, prompt: Prompt, one: Sampled) -> str:
        tokens = one.tokens[:-1] if one.finish_reason == "eos" else one.tokens
        return self._tokenizer.decode(tokens, before=list(prompt.ids))

    def _rows(self, answered: Sequence[Answered], elo: bool, stage: StageConfig, count: int) -> sequences.Rows:
        return sequences.rows(
            [
                sequences.Continuation(
                    one.prompt.ids,
                    one.sampled.tokens,
                    self._between if elo else (),
                    one.prompt.answer_ids if elo else (),
                )
                for one in answered
            ],
            count,
            stage.row_length,
        )

    def _scored(self, params: Any, made: sequences.Rows, stage: StageConfig) -> _Scored:
        """As many rows at once as the step has in one part, so that scoring needs no more memory than it."""
        rows, scalars = rows_at_once(self._config, stage), stepping.stage_scalars(stage)
        found = []
        for first in range(0, len(made.columns["tokens"]), rows):
            part = {name: self._placed(name, made.columns[name][first : first + rows]) for name in SCORED}
            found.append(jax.device_get(self._score(params, part, scalars)))
        return _Scored(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def _placed(self, name: str, value: Array) -> jax.Array:
        column = self._objective.columns[name]
        return jax.device_put(value, rules.batch_sharding(self._trainer.mesh, column.axes))

    def placed(self, columns: Mapping[str, Array]) -> dict[str, jax.Array]:
        """Rows of a batch on the devices."""
        return {name: self._placed(name, value) for name, value in columns.items()}

    def _mismatch(self, made: sequences.Rows, scored: _Scored, answered: Sequence[Answered]) -> float:
        own = np.concatenate([one.sampled.log_p for one in answered])
        found = float(np.abs(own - np.concatenate(made.of(scored.log_p))).mean())
        if not found <= self._policy.max_mismatch:
            raise UserError(
                f"sampler and trainer differ by {found:.3g} nats a token, more than policy.max_mismatch = "
                f"{self._policy.max_mismatch}: compute in float32 (model.compute_dtype), or raise the bound."
            )
        return found

    def _rewards_of(self, answered: Sequence[Answered], made: sequences.Rows, scored: _Scored, elo: bool) -> Array:
        """(N,) float32: of elo the log-probability of the answer behind the thought, nats."""
        if elo:
            return np.array([log_p.sum() for log_p in made.of(scored.log_p, answers=True)], np.float32)
        return np.array([one.reward for one in answered], np.float32)

    def _judged(self, answered: Sequence[Answered]) -> list[Answered]:
        cases = [
            Case(one.prompt.text, one.text, one.prompt.reference, one.prompt.ids, one.sampled.tokens)
            for one in answered
        ]
        parts = rewarding.each(self._rewards, cases)
        rewards = rewarding.total(parts, self._policy.rewards, len(cases))
        return [
            dataclasses.replace(one, reward=float(rewards[i]), parts={name: float(of[i]) for name, of in parts.items()})
            for i, one in enumerate(answered)
        ]

    def _advantages(
        self, method: str, rewards: Array, penalties: Sequence[Array], values: Sequence[Array]
    ) -> estimates.Estimated:
        """By token; the penalty of each token is taken off the reward."""
        policy = self._policy
        if method == "ppo":
            each = [-np.asarray(penalty, np.float64) for penalty in penalties]
            for of_tokens, reward in zip(each, rewards, strict=True):
                of_tokens[-1] += reward
            found = estimates.gae(each, values, policy.gamma, policy.gae_lambda)
            return found._replace(advantages=estimates.whitened(found.advantages)) if policy.whiten else found
        whole = rewards - np.array([penalty.sum() for penalty in penalties])
        of = estimates.within_group if method == "group" else estimates.leave_one_out
        spread = [np.full(len(v), a) for v, a in zip(values, of(whole, policy.samples), strict=True)]
        # The critic learns nothing where it is not asked.
        return estimates.Estimated(spread, [np.asarray(v) for v in values])

    def _seed(self, iteration: int) -> int:
        return int(np.random.SeedSequence([self._config.seed, iteration]).generate_state(1, np.uint64)[0] >> 1)
