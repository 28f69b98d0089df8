"""Settings of policy optimisation: the objective `policy` and the iterations of `m1 rl` (m1jax.rollouts)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m1jax.config.stages import bounded
from m1jax.errors import UserError

METHODS = ("elo", "ppo", "group", "leave_one_out")


@dataclass(frozen=True)
class RewardConfig:
    """Settings of the objective `reward`; the formula is in m1jax/objectives/reward.py."""

    margin: float = bounded(0.0, default=0.0)
    """Least difference of the two numbers."""
    center: float = bounded(0.0, default=0.0)
    """Weight of the squared sum of the two numbers, which keeps them near 0, such as 0.01."""


@dataclass(frozen=True)
class PolicyConfig:
    """Settings of `m1 rl`; the formulas are in m1jax/objectives/policy.py and m1jax/rollouts/advantages.py."""

    methods: Mapping[str, str] = field(default_factory=dict)
    """What each stage does, by its name: elo, ppo (GAE and a critic), group or leave_one_out (advantages within the
    samples of a prompt). A stage that is not named: ppo."""
    prompts: int = bounded(1, default=8)
    """Prompts of an iteration."""
    only: tuple[str, ...] = ()
    """Which conversations are asked, as patterns of file names such as "extraction*"; empty: all."""
    samples: int = bounded(1, default=4)
    """Continuations of each prompt."""
    minibatches: int = bounded(1, default=1)
    """Steps that one pass over an iteration's continuations takes, each of the stage's `global_batch` rows."""
    epochs: int = bounded(1, default=1)
    """Passes over them."""
    max_new_tokens: int = bounded(1, default=48)
    """Most tokens of a continuation; with elo, of the thought."""
    temperature: float = bounded(0.0, default=1.0)
    """Of sampling, and of every log-probability of the objective."""
    top_p: float = bounded(0.0, default=1.0)
    slots: int = bounded(1, default=16)
    """Continuations that are generated at once."""
    sampler_tensor: int = bounded(0, default=0)
    """Devices that each matrix is divided over while sampling, where each holds a share of its heads; the others hold
    copies. 0: as `mesh` says, which with mesh.fsdp gathers every matrix for every token."""
    rewards: Mapping[str, float] = field(default_factory=lambda: {"exact": 1.0})
    """Weights of rewards by name: one of m1jax.rollouts.rewards.RULES, "model:FOLDER" for a reward model, or
    "MODULE:FUNCTION" for a function of your own. The reward is their weighted sum; elo has its own."""
    clip: float = bounded(0.0, default=0.2)
    """Ratios of probabilities count from 1 - clip to 1 + clip."""
    dual_clip: float = bounded(0.0, default=0.0)
    """Where an advantage is negative, ratios count up to this (above 1); 0: no bound."""
    loss_mean: str = bounded(choices=("tokens", "sequences", "sequence_means"), default="tokens")
    """What the loss is the mean of; see m1jax/objectives/policy.py."""
    gamma: float = bounded(0.0, default=1.0)
    gae_lambda: float = bounded(0.0, default=0.95)
    whiten: bool = True
    """Advantages of an iteration are scaled to mean 0 and deviation 1 (ppo)."""
    value_weight: float = bounded(0.0, default=0.1)
    """Weight of the critic's loss."""
    value_clip: float = bounded(0.0, default=0.2)
    """The critic's values count within this of those before the iteration; 0: no bound."""
    kl_weight: float = bounded(0.0, default=0.05)
    """Weight of the divergence from the reference."""
    kl: str = bounded(choices=("k1_reward", "k2_loss", "k3_loss"), default="k1_reward")
    """Its estimator and where it acts. k1 as a loss has no gradient in expectation, so it is only a reward."""
    max_kl: float = bounded(0.0, default=0.0)
    """Largest divergence from the reference, nats a token, mean over an iteration's continuations; above it the run
    saves and stops. 0: no bound."""
    entropy_weight: float = bounded(0.0, default=0.0)
    elo_terms: str = bounded(choices=("both", "score", "answer"), default="both")
    """Terms of elo's gradient: through the thought's probability (score), through the answer's, or both."""
    elo_separator: str = "\n"
    """Text between a thought and the answer."""
    max_mismatch: float = bounded(0.0, default=0.1)
    """Largest mean difference (nats a token) between the log-probabilities of sampler and trainer; above it the run
    stops."""
    heldout_prompts: int = bounded(0, default=64)
    """Held-out prompts whose answers (`samples` to each) are scored with `train.validate_every`."""
    shown: int = bounded(0, default=2)
    """Held-out prompts, always the same, whose answers are written to samples.jsonl."""

    @property
    def steps(self) -> int:
        """Optimiser steps of an iteration."""
        return self.minibatches * self.epochs

    def method(self, stage: str) -> str:
        """What a stage does."""
        return self.methods.get(stage, "ppo")


def check_policy(policy: PolicyConfig, stages: Any, train: Any) -> None:
    """Raises UserError where fields of the policy, the stages (StageConfig) and `train` (TrainConfig) contradict."""
    names = [stage.name for stage in stages]
    for name, method in policy.methods.items():
        if name not in names:
            raise UserError(f"config key policy.methods.{name} names no stage: the stages are {', '.join(names)}.")
        if method not in METHODS:
            raise UserError(f"config key policy.methods.{name} must be one of {', '.join(METHODS)}, got {method!r}.")
    if not policy.temperature:
        raise UserError("config key policy.temperature must be above 0: the likeliest token alone teaches nothing.")
    if not 0 < policy.top_p <= 1:
        raise UserError(f"config key policy.top_p must be above 0 and at most 1, got {policy.top_p}.")
    for name in ("clip", "gamma", "gae_lambda"):
        if getattr(policy, name) > 1:
            raise UserError(f"config key policy.{name} must be at most 1, got {getattr(policy, name)}.")
    if policy.dual_clip and policy.dual_clip <= 1:
        raise UserError(f"config key policy.dual_clip must be 0 or above 1, got {policy.dual_clip}.")
    if policy.samples == 1:
        for stage in stages:
            if policy.method(stage.name) != "ppo":
                raise UserError(
                    f"config key policy.samples = 1 makes groups of one, which stage {stage.name!r} "
                    f"({policy.method(stage.name)}) has nothing to compare with: take 2 or more."
                )
    for stage in stages:
        if policy.method(stage.name) != "elo" and not any(policy.rewards.values()):
            raise UserError(
                f"config key policy.rewards has no weight other than 0, so that stage {stage.name!r} "
                f"({policy.method(stage.name)}) has nothing to learn: give a reward a weight."
            )
    for name, steps in (("checkpoint_every", train.checkpoint_every), ("emergency_every", train.emergency_every)):
        if steps % policy.steps:
            raise UserError(
                f"config key train.{name} = {steps} is not a multiple of the {policy.steps} steps of an iteration "
                f"(policy.minibatches x policy.epochs): checkpoints are taken between iterations."
            )
    for i, stage in enumerate(stages):
        rows = stage.global_batch * policy.minibatches
        total = policy.prompts * policy.samples
        if total % rows:
            raise UserError(
                f"config key stages.{i}.global_batch = {stage.global_batch} with policy.minibatches = "
                f"{policy.minibatches} makes {rows} rows, over which {total} continuations (policy.prompts x "
                f"policy.samples) do not spread evenly: change one of them."
            )
        if stage.ramp.start:
            raise UserError(f"config key stages.{i}.ramp is for text: an iteration has always as many rows.")
        if stage.steps % policy.steps:
            raise UserError(
                f"config key stages.{i}.tokens makes {stage.steps} steps, not whole iterations of {policy.steps} steps "
                f"(policy.minibatches x policy.epochs): make it a multiple of "
                f"{policy.steps * stage.global_batch * stage.row_length} tokens."
            )
        if stage.row_length // (total // rows) <= policy.max_new_tokens:
            raise UserError(
                f"config key stages.{i}.row_length = {stage.row_length} leaves {stage.row_length // (total // rows)} "
                f"tokens for each of the {total // rows} continuations of a row, no more than policy.max_new_tokens = "
                f"{policy.max_new_tokens}: lengthen the rows, or take more of them."
            )
