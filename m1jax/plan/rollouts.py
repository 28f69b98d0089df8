"""What an iteration of `m1 rl` needs: every program of it, and what rests in memory beside each.

The trainer's state never leaves the devices; the sampler's copy of the model is there while continuations are made and
no longer (m1jax.rollouts.iteration). A reward model counts as large as the trained one.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from m1jax.config import RunConfig, StageConfig
from m1jax.generate import Sampling, programs
from m1jax.generate.batching import PROMPTS
from m1jax.generate.session import CHUNK, bucket
from m1jax.objectives.policy import Policy
from m1jax.objectives.reward import Reward
from m1jax.plan import answers, compiling, decoding, flops, memory, roofline
from m1jax.plan.answers import Answer
from m1jax.plan.compiling import Compiling
from m1jax.plan.topologies import Topology
from m1jax.rollouts import reward_model
from m1jax.rollouts.iteration import SCORED, for_sampling, rows_at_once, sampler_mesh

MODEL_REWARD = "model:"
COPY = "sampler's copy, while it samples"


@dataclasses.dataclass(frozen=True)
class Part:
    """One program of an iteration on one device: bytes in HBM, seconds of one call at the published peaks."""

    name: str
    own: float
    """What the program needs: arguments, outputs, temporaries, code."""
    beside: float
    """What rests in memory meanwhile."""
    limit: float
    times: roofline.Times
    calls: float
    """Calls of an iteration, at most: every continuation as long as it may be, every prompt too."""

    @property
    def fits(self) -> bool:
        """Whether both together are within the limit."""
        return self.own + self.beside <= self.limit


@dataclasses.dataclass(frozen=True)
class Iteration:
    """An iteration of a stage: its step, and the programs around it in their order."""

    step: Answer
    parts: tuple[Part, ...]
    resident: Mapping[str, float]
    """Bytes of one device by what they are."""
    tokens: int
    """Sampled tokens of an iteration, at most."""

    @property
    def fits(self) -> bool:
        """Whether all programs do."""
        return all(part.fits for part in self.parts)

    @property
    def seconds(self) -> float:
        """At least, one program after the other, each at its bound."""
        return sum(part.calls * part.times.bound for part in self.parts)


def iteration(config: RunConfig, stage: StageConfig, topology: Topology, compile_it: Compiling) -> Iteration:
    """Compiles the programs of an iteration of `stage`.

    Raises UserError where mesh, batch or policy.sampler_tensor do not divide, TooLargeError where one program alone
    does not fit.
    """
    step = answers.train_step(config, stage, topology, compile_it)
    found = _Compiled(config, stage, topology, compile_it)
    policy = config.policy
    steps = Part("steps", step.hbm, found.judges, step.hbm_limit, step.times, policy.steps)
    parts = (*found.parts(), steps)
    resident = {**found.resident, "reward models": found.judges}
    return Iteration(step, parts, resident, policy.prompts * policy.samples * policy.max_new_tokens)


class _Compiled:
    """The programs of an iteration beside the step, and the bytes of what they share."""

    def __init__(self, config: RunConfig, stage: StageConfig, topology: Topology, compile_it: Compiling):
        self._config, self._stage, self._topology, self._compile = config, stage, topology, compile_it
        self._mesh = compiling.mesh_for(config, topology, [stage])
        self._sampler = sampler_mesh(self._mesh, config.policy.sampler_tensor) or self._mesh
        self._built = compiling.train_program(config, self._mesh)
        assert isinstance(self._built.objective, Policy)
        self._objective, state = self._built.objective, self._built.state
        self._own = {name: self._built.params[name] for name in self._objective.model_shapes}
        weights = decoding.abstract_parameters(config.model, self._sampler)[1]
        self.resident = {
            "trained parameters": memory.device_bytes(state.params),
            "reference, other frozen parameters": memory.device_bytes(state.frozen),
            "optimiser": memory.device_bytes(state.opt_state),
            "state of hooks": memory.device_bytes(state.hooks),
            COPY: memory.device_bytes(weights),
        }
        self._judge = Reward(config, self._mesh)
        self._judge_parameters = reward_model.abstract_parameters(self._judge, self._mesh, config.train.frozen_dtype)
        self._judges = sum(name.startswith(MODEL_REWARD) for name in config.policy.rewards)
        self.judges = self._judges * memory.device_bytes(self._judge_parameters)

    def parts(self) -> Iterator[Part]:
        """In the order of an iteration."""
        config, policy, stage = self._config, self._config.policy, self._stage
        rows, count = stage.global_batch * policy.minibatches, policy.prompts * policy.samples
        share = stage.row_length // (count // rows)
        longest = share - policy.max_new_tokens
        room, asked = self._room(share), self._room(longest)
        copy = self.resident[COPY]
        state = sum(self.resident.values()) - copy + self.judges
        own = memory.device_bytes(self._own)
        yield self._part(
            "parameters laid out for sampling",
            self._mesh,
            jax.jit(functools.partial(for_sampling, config)),
            (self._own,),
            # Moved from the trainer's mesh to the sampler's, the copy is there twice.
            beside=state - own + copy,
            flops_of_call=0.0,
            calls=1,
        )
        slots = bucket(min(policy.slots, count), 1)
        cache = memory.device_bytes(decoding.abstract_state(config.model, self._sampler, slots, room))
        tokens = min(CHUNK, asked)
        read = decoding.reading(config.model, self._sampler, PROMPTS, asked, tokens)
        yield self._part(
            f"{tokens} tokens of {PROMPTS} prompts read",
            self._sampler,
            programs.prefill,
            read,
            beside=state + cache,
            flops_of_call=PROMPTS * tokens * flops.decode_per_token(config.model, longest),
            calls=policy.prompts / PROMPTS * math.ceil(longest / tokens),
        )
        sampling = Sampling(temperature=policy.temperature, top_p=policy.top_p)
        yield self._part(
            f"a token in each of {slots} slots",
            self._sampler,
            programs.decode,
            decoding.arguments(
                config.model, self._sampler, slots, room, decoding.sampled(config.model, slots, sampling)
            ),
            beside=state + memory.device_bytes(read[4]),
            flops_of_call=slots * flops.decode_per_token(config.model, share - 1),
            calls=count * policy.max_new_tokens / slots,
        )
        at_once = rows_at_once(config, stage)
        forward = flops.per_token(config.model, stage.row_length, config.train).model / 3
        yield self._part(
            f"{at_once} rows scored, by model and reference",
            self._mesh,
            jax.jit(self._objective.score),
            self._columns(at_once, stage.row_length),
            beside=state - memory.device_bytes(self._built.params),
            flops_of_call=2 * forward * at_once * stage.row_length,
            calls=rows / at_once,
        )
        if not self.judges:
            return
        texts = reward_model.rows_at_once(self._mesh)
        length = reward_model.padded(share + 1, config.model.max_positions)
        _, columns, scalars = self._columns(texts, length)
        yield self._part(
            f"{texts} continuations read by a reward model",
            self._mesh,
            jax.jit(self._judge.scores),
            (self._judge_parameters, columns, scalars),
            beside=state - self.judges / self._judges,
            flops_of_call=forward * texts * length,
            calls=count / texts * self._judges,
        )

    def _room(self, tokens: int) -> int:
        return min(bucket(tokens), self._config.model.max_positions)

    def _columns(self, rows: int, length: int) -> tuple[Any, Any, Any]:
        """Abstract parameters, and what scoring reads of rows."""
        _, batch, scalars = self._built.arguments(rows, length)
        return self._built.params, {name: batch[name] for name in SCORED}, scalars

    def _part(
        self,
        name: str,
        mesh: Mesh,
        how: Any,
        given: tuple[Any, ...],
        *,
        beside: float,
        flops_of_call: float,
        calls: float,
    ) -> Part:
        with compiling.lowering(mesh):
            lowered = how.lower(*given)
        what = f"{self._config.name}, {name}"
        _, found = compiling.known_or(self._compile, what, lowered, mesh, self._topology, {})
        times = roofline.step_times(flops_of_call / mesh.size, found.arguments, found.collectives, self._topology)
        return Part(name, found.hbm, beside, self._topology.hbm_per_device, times, calls)


def to_json(found: Iteration, topology: Topology) -> dict[str, Any]:
    """An iteration as plain values."""
    return {
        **answers.to_json(found.step, topology),
        "iteration": {
            "fits": found.fits,
            "programs": [{**dataclasses.asdict(part), "fits": part.fits} for part in found.parts],
            "resident": dict(found.resident),
            "sampled_tokens": found.tokens,
            "seconds_at_bound": found.seconds,
        },
    }
