"""What the fields of a config must be beside one another; schema.py says what each may be by itself."""

import dataclasses

from m1jax.config import seeds
from m1jax.config.domains import check_keys, check_known, check_names, check_parts
from m1jax.config.long_context import check_long_context
from m1jax.config.policy import check_policy
from m1jax.config.records import check_records
from m1jax.config.schema import LAYER_KINDS, TRACKERS, DataConfig, ModelConfig, RunConfig, StageConfig
from m1jax.config.tuning import check_lora, matched
from m1jax.errors import UserError


def check_model(model: ModelConfig) -> None:
    """Raises UserError where fields of the model contradict each other."""
    for kind in model.pattern:
        if kind not in LAYER_KINDS:
            raise UserError(f"config key model.pattern must hold {' or '.join(LAYER_KINDS)}, got {kind!r}.")
    for prefix, kind in (("", "global"), ("window_", "window")):
        heads, kv_heads, head_dim = model.heads(kind)
        if model.hidden % heads or head_dim % 2:
            raise UserError(
                f"config key model.{prefix}num_heads = {heads} does not divide model.hidden = {model.hidden} into "
                f"even head dimensions: choose heads so that hidden / heads is an even number."
            )
        if heads % kv_heads:
            raise UserError(
                f"config key model.{prefix}num_kv_heads = {kv_heads} does not divide model.{prefix}num_heads = {heads}:"
                f" choose a divisor."
            )


def check_run(config: RunConfig, only: str | None = None) -> None:
    """Raises UserError where fields of the run contradict each other; with `only`, other stages are not checked."""
    check_model(config.model)
    seeds.checked(config.seed, "config key seed")
    for name in ("b1", "b2", "muon_momentum"):
        if getattr(config.optimizer, name) >= 1:
            raise UserError(f"config key optimizer.{name} must be below 1, got {getattr(config.optimizer, name)}.")
    if config.train.average_decay >= 1:
        raise UserError(f"config key train.average_decay must be below 1, got {config.train.average_decay}.")
    if not config.preference.beta:
        raise UserError("config key preference.beta must be above 0: the loss would not depend on the model.")
    if config.objective == "policy":
        check_policy(config.policy, config.stages, config.train)
    check_lora(config.model, config.train.lora)
    matched(config.model, config.train.trained)
    for tracker in config.train.trackers:
        if tracker not in TRACKERS:
            raise UserError(f"config key train.trackers must hold {' or '.join(TRACKERS)}, got {tracker!r}.")
    if config.data.heldout_share >= 1:
        raise UserError(f"config key data.heldout_share must be below 1, got {config.data.heldout_share}.")
    if config.data.vocab_size > config.model.vocab_size:
        raise UserError(
            f"config key data.vocab_size = {config.data.vocab_size} exceeds model.vocab_size = "
            f"{config.model.vocab_size}: the model must hold every token."
        )
    if config.synthesis.test_share >= 0.5:
        raise UserError(f"config key synthesis.test_share must be below 0.5, got {config.synthesis.test_share}.")
    _check_domains(config.data, config.stages, only)
    check_long_context(config.data.long_context, config.data.row_lengths)
    for key, size in config.data.source_bytes.items():
        if size < 1:
            raise UserError(f"config key data.source_bytes.{key} must be at least 1, got {size}.")
    for key, cap in config.data.max_epochs.items():
        if not cap > 0:
            raise UserError(f"config key data.max_epochs.{key} must be above 0, got {cap}.")
    names = [stage.name for stage in config.stages]
    for i, stage in enumerate(config.stages):
        path = f"stages.{i}"
        if names.count(stage.name) > 1:
            raise UserError(f"config key {path}.name = {stage.name!r} is used twice: give every stage its own name.")
        if only not in (None, stage.name):
            continue
        if stage.row_length not in config.data.row_lengths:
            raise UserError(
                f"config key {path}.row_length = {stage.row_length} is not among data.row_lengths = "
                f"{list(config.data.row_lengths)}: add it there and pack again."
            )
        if stage.row_length > config.model.max_positions:
            raise UserError(
                f"config key {path}.row_length = {stage.row_length} exceeds model.max_positions = "
                f"{config.model.max_positions}: shorten the rows or raise max_positions."
            )
        _check_stage(path, stage, config.stages[i - 1] if i else None)


def _check_domains(data: DataConfig, stages: tuple[StageConfig, ...], only: str | None) -> None:
    """Raises UserError where a domain has no proper name, or something names a domain that is not listed."""
    check_names(data.domains)
    check_records(data.fields, data.domain_names, data.domains)
    check_parts(data.vocab_parts, data.vocab_size, data.domains)
    for i, stage in enumerate(stages):
        if only in (None, stage.name):
            check_keys(f"stages.{i}.mixture", stage.mixture, data.domains)
    check_keys("data.max_epochs", data.max_epochs, data.domains)
    for name, domain in data.tasks.items():
        check_known(f"config key data.tasks.{name}", domain, data.domains)


def _check_stage(path: str, stage: StageConfig, before: StageConfig | None) -> None:
    """Raises UserError where fields of a stage contradict each other."""
    if not sum(stage.mixture.values()) > 0:
        raise UserError(f"config key {path}.mixture has no weight above 0: give at least one source a share.")
    if len(stage.difficulty) != 2 or not 0 <= stage.difficulty[0] < stage.difficulty[1] <= 1:
        raise UserError(
            f"config key {path}.difficulty must be (low, high) with 0 <= low < high <= 1, got {stage.difficulty}."
        )
    ramp = stage.ramp
    if ramp.start and not (ramp.start < stage.global_batch and ramp.increment and ramp.tokens):
        raise UserError(
            f"config key {path}.ramp must have start below global_batch = {stage.global_batch}, and increment and "
            f"tokens above 0, got {ramp.start}, {ramp.increment} and {ramp.tokens}."
        )
    if not stage.batches[-1][1]:
        raise UserError(
            f"config key {path}.ramp.tokens = {ramp.tokens} leaves no step of {stage.global_batch} rows in a stage of "
            f"{stage.tokens} tokens: shorten the ramp or lengthen the stage."
        )
    rate = stage.learning_rate
    if rate.goes_on:
        if before is None or dataclasses.replace(before.learning_rate, goes_on=True) != rate:
            raise UserError(
                f"config key {path}.learning_rate.goes_on is True, but the stage before has other values: give both "
                f"the same values, or set goes_on to False."
            )
        return
    if rate.shape == "constant" and rate.start != rate.end:
        raise UserError(f"config key {path}.learning_rate is constant, but start {rate.start} is not end {rate.end}.")
    if rate.warmup_steps >= stage.steps:
        raise UserError(
            f"config key {path}.learning_rate.warmup_steps = {rate.warmup_steps} fills all {stage.steps} steps of "
            f"the stage: shorten the warm-up or lengthen the stage."
        )
