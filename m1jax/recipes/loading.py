"""A trained model out of the folder of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from m1jax import artefact, config_file, model
from m1jax.config import RunConfig, to_dict
from m1jax.convert import hf
from m1jax.data.tokenizer import Tokenizer
from m1jax.errors import UserError
from m1jax.generate.engine import LanguageModel
from m1jax.train.checkpoint import Checkpoints, check_model
from m1jax.train.loop import stage_of


@dataclass(frozen=True)
class Trained:
    """A run's model after `step` steps: its config as it was trained, parameters on one device, and the RoPE base."""

    config: RunConfig
    step: int
    params: Any
    rope_base: float

    @property
    def key(self) -> str:
        """What these parameters were made from: 16 hexadecimal digits."""
        return artefact.key(to_dict(self.config), self.step)


def from_run(folder: Path, step: int | None = None) -> Trained:
    """The model of a run's folder at a checkpoint (default: the newest); raises UserError where there is none."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        newest = checkpoints.latest_step()
        if step is not None and step not in checkpoints.steps():
            raise UserError(f"{folder} holds no checkpoint of step {step}: there are {checkpoints.steps()}.")
        config = config_file.from_dict(checkpoints.meta(step).run)
        step = newest if step is None else step
        assert step is not None
        device = SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            model.abstract(config.model).shapes,
        )
        params = checkpoints.restore_params(shapes, step)
    finally:
        checkpoints.close()
    return Trained(config, step, params, stage_of(config, step - 1).rope_base)


def of_config(config: RunConfig, step: int | None) -> Trained:
    """The model of a config at a checkpoint; step 0 is the initial one, made from the seed.

    Raises UserError where the folder's checkpoints are of another model.
    """
    if step == 0:
        params = jax.jit(model.initialise, static_argnums=0)(config.model, config.seed)
        return Trained(config, 0, params, config.stages[0].rope_base)
    checkpoints = Checkpoints(config.checkpoints, read_only=True)
    try:
        check_model(config, checkpoints.meta(), config.checkpoints)
    finally:
        checkpoints.close()
    return from_run(Path(config.folder), step)


def tokenizer_of(folder: Path, config: RunConfig) -> Tokenizer:
    """The tokenizer of a run: in its folder, or where its config says."""
    inside = folder / "tokenizer"
    return Tokenizer.load(inside if inside.is_dir() else config.tokenizer)


def load(folder: Path) -> tuple[LanguageModel, Tokenizer | None]:
    """The model and tokenizer of a run's folder (its newest checkpoint) or of an exported one (None without its file).

    Raises UserError where `folder` is neither.
    """
    if (folder / "config.json").is_file():
        config, rope_base, params = hf.read(folder)
        tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
        return LanguageModel(config, rope_base, params), tokenizer
    if not (folder / "checkpoints").is_dir():
        raise UserError(
            f"{folder} is neither a run's folder (it has no checkpoints) nor an exported one (it has no config.json): "
            f"check the path."
        )
    trained = from_run(folder)
    found = LanguageModel(trained.config.model, trained.rope_base, trained.params)
    return found, tokenizer_of(folder, trained.config)
