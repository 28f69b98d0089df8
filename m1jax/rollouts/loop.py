"""The outer loop of policy optimisation: an iteration's batch is made, its steps are taken, and the state is saved.

Checkpoints are taken between iterations only, so a run that was killed makes the iteration it was in again, with the
same tokens.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from m1jax.config import StageConfig
from m1jax.errors import InterruptedRunError, UserError
from m1jax.rollouts.iteration import Collected, Collector, means
from m1jax.rollouts.prompts import Prompt
from m1jax.train.report import StepReport
from m1jax.train.run import records
from m1jax.train.run.faults import StopRequest
from m1jax.train.run.reports import Reporter, Taken
from m1jax.train.state import TrainState
from m1jax.train.trainer import Trainer

SAMPLES = "samples.jsonl"
"""Beside metrics.jsonl: what the model answers held-out prompts, and with which rewards."""
_FIRST_RATIO = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest mean |log ratio| at the first step of an iteration, by compute dtype: only rounding differs there."""


def fit(
    trainer: Trainer,
    state: TrainState,
    collector: Collector,
    heldout: Sequence[Prompt],
    say: Callable[[str], None],
) -> TrainState:
    """Steps a restored state through whole iterations to the last step of the run, saves it and returns it.

    Raises InterruptedRunError after saving when a signal asked the run to stop, and UserError as `Collector.collect`
    does, where the loss stays non-finite, where a checkpoint is not of whole iterations and, after saving, where the
    divergence from the reference is above `policy.max_kl`.
    """
    config, first, each = trainer.config, int(state.step), trainer.config.policy.steps
    if first % each:
        raise UserError(
            f"the checkpoint of step {first} is inside an iteration of {each} steps (policy.minibatches x "
            f"policy.epochs): restore the settings that it was trained with."
        )
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        for hook in trainer.hooks:
            stack.callback(hook.end)
            hook.begin(first)

        def emit(report: StepReport) -> None:
            for hook in trainer.hooks:
                hook.report(report)

        reporter = Reporter(config, trainer.objective, trainer.mesh, first, emit)
        samples = _Samples(trainer, collector, heldout, first, say)
        if not first:
            samples.measure(state, 0)
        for done in range(first, config.total_steps, each):
            state, kl = _iterate(trainer, state, collector, done, reporter, say)
            done += each
            begun = time.perf_counter()
            if found := samples.measure(state, done):
                reporter.measured(found, time.perf_counter() - begun)
            bound = config.policy.max_kl
            drifted = bound > 0 and not kl <= bound
            reason = "drifted" if drifted else stop.reached(done)
            if done % config.train.checkpoint_every == 0 or done == config.total_steps or reason:
                reporter.flush()
                trainer.save(state, done)
            elif config.train.emergency_every and done % config.train.emergency_every == 0:
                reporter.flush()
                trainer.save(state, done, emergency=True)
            if drifted:
                trainer.wait()
                raise UserError(
                    f"before step {done - each + 1} the model was {kl:.3f} nats a token from its reference, more than "
                    f"policy.max_kl = {bound}: saved after step {done} in {config.checkpoints}; look at the samples, "
                    f"and go on with a larger bound and --amend, or begin again with a larger policy.kl_weight."
                )
            if reason and done < config.total_steps:
                trainer.wait()
                raise InterruptedRunError(
                    f"{reason} after step {done} of {config.total_steps}: saved in {config.checkpoints}; the same "
                    f"command continues."
                )
        trainer.finish()
    return state


def _iterate(
    trainer: Trainer,
    state: TrainState,
    collector: Collector,
    done: int,
    reporter: Reporter,
    say: Callable[[str], None],
) -> tuple[TrainState, float]:
    """The steps of the iteration that begins after `done` steps, and how far from its reference the model was."""
    config, policy = trainer.config, trainer.config.policy
    iteration, stage = done // policy.steps, trainer.config.timeline.stage(done)
    begun = time.perf_counter()
    collected = collector.collect(state.all_params, iteration, stage)
    waited = time.perf_counter() - begun
    for epoch in range(policy.epochs):
        for number, columns in enumerate(_minibatches(collected, policy.minibatches, [config.seed, iteration, epoch])):
            step = done + epoch * policy.minibatches + number
            state, metrics = trainer.step(state, collector.placed(columns), step)
            reporter.add(Taken(step, columns["positions"], metrics, waited))
            if step == done:
                _check_first(metrics, config.model.compute_dtype)
                reporter.measured(collected.values, 0.0)
            waited = 0.0
    shown = collected.values
    if iteration % config.train.log_every == 0 or done + policy.steps == config.total_steps:
        say(
            f"iteration {iteration + 1} of {config.total_steps // policy.steps} ({stage.name}, "
            f"{policy.method(stage.name)}): reward {shown['reward']:.3f}, KL {shown['rollout_kl']:.4f} nats a token, "
            f"{shown['length']:.1f} tokens an answer, {shown['ended']:.0%} ended, sampler and trainer "
            f"{shown['mismatch']:.1e} apart, {shown['rollout_tokens_per_second']:,.0f} tokens/s"
        )
    return state, shown["rollout_kl"]


def _minibatches(collected: Collected, count: int, seed: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """The rows of an iteration in a new order, in `count` equal parts."""
    rows = len(collected.columns["tokens"])
    parts = np.random.default_rng(seed).permutation(rows).reshape(count, -1)
    return [{name: value[part] for name, value in collected.columns.items()} for part in parts]


def _check_first(metrics: Any, dtype: str) -> None:
    """At the first step nothing has moved: the ratio is 1, but for rounding."""
    deviation = float(jax.device_get(metrics["ratio_deviation"]))
    if not math.isnan(deviation) and deviation > _FIRST_RATIO[dtype]:
        raise UserError(
            f"the ratio of probabilities is {math.exp(deviation):.4f} at the first step of an iteration, where it is "
            f"1: the trainer's step and its scoring do not compute the same; please report it with your config."
        )


class _Samples:
    """Answers to held-out prompts, always the same ones, every `train.validate_every` steps and at both ends."""

    def __init__(
        self,
        trainer: Trainer,
        collector: Collector,
        prompts: Sequence[Prompt],
        first: int,
        say: Callable[[str], None],
    ):
        config = trainer.config
        self._config, self._collector, self._say = config, collector, say
        self._every = config.train.validate_every
        some = np.random.default_rng(config.seed).permutation(len(prompts))[: config.policy.heldout_prompts]
        self._prompts = [prompts[i] for i in sorted(some.tolist())] if self._every else []
        self._path = config.journal / SAMPLES
        self._last = first
        if self._path.exists():
            kept = [line for line in records.read(self._path) if first and line["step"] <= first]
            self._path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), "utf-8")

    def measure(self, state: TrainState, done: int) -> dict[str, float]:
        """Mean reward, its standard error and the mean length, where this step is one of them; else nothing.

        Where a stage ends and another begins both are measured: their rewards are not of one kind.
        """
        due = done == self._config.total_steps or done // max(self._every, 1) > self._last // max(self._every, 1)
        timeline = self._config.timeline
        begins = done in timeline.first_steps[:-1]
        if not self._prompts or not (due or begins):
            return {}
        self._last = done
        found = self._of_stage(state, done, timeline.stage(done - 1)) if done else {}
        if begins:
            self._of_stage(state, done, timeline.stage(done))
        return found

    def _of_stage(self, state: TrainState, done: int, stage: StageConfig) -> dict[str, float]:
        answered = self._collector.heldout(state.all_params, stage, self._prompts)
        # Answers to one prompt are not independent of each other: the error is that of means by prompt.
        rewards = np.array([one.reward for one in answered]).reshape(len(self._prompts), -1).mean(axis=1)
        mean, error = _mean(rewards)
        length = float(np.mean([len(one.sampled.tokens) for one in answered]))
        found = {"heldout_reward": mean, "heldout_reward_error": error, "heldout_length": length}
        found |= {f"heldout_{name}": value for name, value in means(answered).items()}
        before = next((line for line in records.read(self._path) if line["stage"] == stage.name), None)
        gained = ""
        if before is not None:
            gain = found["heldout_gain"], found["heldout_gain_error"] = _mean(rewards - np.array(before["rewards"]))
            gained = f"; since step {before['step']} {gain[0]:+.3f} ({gain[1]:.3f}), prompt by prompt"
        shown = [
            {"prompt": one.prompt.text, "reference": one.prompt.reference, "response": one.text, "reward": one.reward}
            for one in answered[:: self._config.policy.samples][: self._config.policy.shown]
        ]
        line = {"step": done, "stage": stage.name, **found, "samples": shown, "rewards": rewards.tolist()}
        records.append(self._path, line)
        self._say(
            f"after step {done}, stage {stage.name}: held-out reward {mean:.3f} (standard error {error:.3f}, "
            f"{len(self._prompts)} prompts){gained}; {length:.1f} tokens"
        )
        return found


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(values.mean()), error
