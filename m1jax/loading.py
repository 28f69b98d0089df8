"""A trained model from a folder: a run's, an imported one, or a Hugging Face checkpoint."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax import artefact, kernels, model
from m1jax import tokenizer as tokenizers
from m1jax.config import DTYPES, LoraConfig, ModelConfig, RunConfig, to_dict
from m1jax.config import file as config_file
from m1jax.convert import adapters as adapter_folders
from m1jax.convert import config_json, merging, model_folder, reading, table
from m1jax.errors import UserError
from m1jax.generate.engine import LanguageModel
from m1jax.model import adapters, seeds
from m1jax.optim import masks
from m1jax.parallel import rules
from m1jax.tokenizer import SpecialIds, Tokenizer
from m1jax.tokenizer import chat as chats
from m1jax.train.checkpoint.checkpoints import check_model
from m1jax.train.checkpoint.folder import CheckpointFolder, existing
from m1jax.train.objective import Objective


@dataclass(frozen=True)
class Stored:
    """A model in Orbax's form, before its numbers are read."""

    config: ModelConfig
    rope_base: float
    parameters: Path
    """Orbax folder that holds them under "params"."""
    key: str
    """What they were made from: 16 hexadecimal digits."""
    step: int | None
    """Steps that a run had taken; None for an imported model."""
    token_ids: Mapping[str, Any]
    tokenizer: Path | None
    """Folder of the tokenizer's files."""
    generation: Mapping[str, Any] | None = None
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """See m1jax.convert.model_folder.Record."""
    run: RunConfig | None = None
    """The config of the run that trained it."""

    @property
    def lora(self) -> LoraConfig | None:
        """The adapter whose factors are beside the parameters."""
        return None if self.run is None else _adapter(self.run)


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
    checkpoints = existing(folder / "checkpoints")
    try:
        config, step = _run_at(checkpoints, folder, step)
        target, lora = target_of(config.model), _adapter(config)
        if lora is None:
            params = checkpoints.restore_params(target, step)
        else:
            params = checkpoints.restore_params(merging.with_factors(target, config.model, lora), step)
            params = merging.merge(params, target, config.model, lora)
    finally:
        checkpoints.close()
    return Trained(config, step, params, config.timeline.stage(step - 1).rope_base)


def _adapter(config: RunConfig) -> LoraConfig | None:
    return config.train.lora if config.train.lora.rank else None


def _run_at(checkpoints: CheckpointFolder, folder: Path, step: int | None) -> tuple[RunConfig, int]:
    """The config that a checkpoint was made with, and its step."""
    newest = checkpoints.latest_step()
    if step is not None and step not in checkpoints.steps():
        raise UserError(f"{folder} holds no checkpoint of step {step}: there are {checkpoints.steps()}.")
    step = newest if step is None else step
    stored = checkpoints.meta(step).run
    assert step is not None
    try:
        return config_file.from_dict(stored), step
    except UserError as error:
        raise UserError(
            f"the checkpoint of step {step} in {folder} is of another version of m1jax ({str(error).rstrip('.?')}): "
            f"export it with that version (`m1 export`) and `m1 import` the result, or train again."
        ) from error


def of_config(config: RunConfig, step: int | None) -> Trained:
    """The model of a config at a checkpoint; step 0 is the one it starts from, made from the seed or read.

    Raises UserError where the folder's checkpoints are of another model.
    """
    if step == 0:
        if config.train.initial:
            params = initial(config, target_of(config.model))
        else:
            params = jax.jit(model.initialise, static_argnums=0)(config.model, seeds.key(config.seed))
        return Trained(config, 0, params, config.stages[0].rope_base)
    checkpoints = existing(config.checkpoints)
    try:
        check_model(config, checkpoints.meta(), config.checkpoints)
    finally:
        checkpoints.close()
    return from_run(Path(config.folder), step)


def all_params(config: RunConfig, objective: Objective, mesh: Mesh, step: int | None) -> tuple[int, Any]:
    """(step, everything that the objective trains or compares with) at a checkpoint, divided over `mesh`.

    Raises UserError where there is none, or it is of another model or objective.
    """
    checkpoints = existing(config.checkpoints)
    try:
        saved = checkpoints.meta(step)
        check_model(config, saved, config.checkpoints)
        step = step or checkpoints.steps()[-1]
        trained = config_file.from_dict(saved.run).objective
        if trained != config.objective:
            raise UserError(
                f"{config.checkpoints} was trained with the objective {trained!r}, the config has "
                f"{config.objective!r}: give --set objective={trained}."
            )
        shardings = rules.parameter_shardings(mesh, objective.shapes, objective.axes)
        target = jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), objective.shapes, shardings)
        return step, checkpoints.restore_params(target, step)
    finally:
        checkpoints.close()


def tokenizer_of(folder: Path, config: RunConfig) -> Tokenizer:
    """The tokenizer of a run: in its folder, or where its config says."""
    inside = folder / "tokenizer"
    return tokenizers.load(inside) if inside.is_dir() else tokenizers.of_run(config)


def stored(folder: Path) -> Stored:
    """The model of a run's folder (its newest checkpoint) or of an imported one; raises UserError for others."""
    if (folder / model_folder.RECORD).is_file():
        record = model_folder.read(folder)
        tokenizer = folder / model_folder.TOKENIZER
        return Stored(
            record.config,
            record.rope_base,
            folder / model_folder.PARAMETERS,
            artefact.require(folder, model_folder.KIND, "import")["key"],
            None,
            record.token_ids,
            tokenizer if tokenizer.is_dir() else None,
            record.generation,
            record.dtypes,
        )
    adapter_folders.refuse(folder)
    if not (folder / "checkpoints").is_dir():
        raise UserError(
            f"{folder} is neither a run's folder (it has no checkpoints) nor an imported model (it has no "
            f"{model_folder.RECORD}): check the path."
        )
    checkpoints = existing(folder / "checkpoints")
    try:
        config, step = _run_at(checkpoints, folder, None)
        trained = checkpoints.meta(step).curriculum.get("chat_format")
    finally:
        checkpoints.close()
    found = tokenizer_of(folder, config)
    if trained and (now := chats.fingerprint(found, config.data.chat_format or None)) != trained:
        raise UserError(
            f"the model in {folder} learned conversations in {trained}, but its tokenizer in {found.folder} writes "
            f"{now}: restore the files of the tokenizer."
        )
    ids: dict[str, Any] = {f"{name}_token_id": getattr(found, f"{name}_id") for name in ("bos", "eos", "pad")}
    if others := [i for i in _ends_of_initial(config, found) if i != found.eos_id]:
        ids["eos_token_id"] = [found.eos_id, *others]
    return Stored(
        config.model,
        config.timeline.stage(step - 1).rope_base,
        checkpoints.state_folder(step),
        artefact.key(to_dict(config), step),
        step,
        ids,
        found.folder,
        run=config,
    )


def fingerprint(folder: Path) -> str:
    """What changes when the model or the tokenizer in a folder does: 16 hexadecimal digits.

    Names, sizes and times of files; raises UserError where `folder` holds no model.
    """
    if (folder / config_json.FILE).is_file():
        files = [path for path in folder.iterdir() if path.is_file()]
    else:
        source = stored(folder)
        files = [path for path in source.parameters.rglob("*") if path.is_file()]
        files += [path for path in (source.tokenizer or source.parameters).iterdir() if path.is_file()]
    states = [(path.parent.name, path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    return artefact.key(states)


def _ends_of_initial(config: RunConfig, tokenizer: Tokenizer) -> list[int]:
    """Every id that ended a text of the model that a run began with, as far as the run's tokenizer has the token."""
    folder = Path(config.train.initial)
    if not config.train.initial or not folder.is_dir():
        return []
    theirs = tokenizer_in(*tokenizer_files(folder))
    names = {} if theirs is None else {i: text for text, i in theirs.special_tokens.items()}
    return [i for i in _ends(folder) if i in names and tokenizer.token_id(names[i]) == i]


def tokenizer_files(folder: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """Folder of the tokenizer of a model in a folder of any kind, None where it has none, and the special tokens that
    the model's config names.
    """
    if (folder / config_json.FILE).is_file():
        return folder, config_json.token_ids(folder)
    source = stored(folder)
    return source.tokenizer, source.token_ids


def _ends(folder: Path) -> tuple[int, ...]:
    """Every id that ends a text of the model in a folder of any kind."""
    if (folder / config_json.FILE).is_file():
        return config_json.ends(config_json.token_ids(folder), config_json.generation(folder), folder)
    source = stored(folder)
    return config_json.ends(source.token_ids, source.generation, folder)


def computed_here(config: ModelConfig, mesh: Mesh | None = None) -> ModelConfig:
    """`config` with an attention that this machine has: kernels run on their own devices, and decode on one each.

    What a run was trained with says nothing about where its model is used; the change is logged.
    """
    needed = kernels.PLATFORMS.get(config.attention)
    if needed is None or (jax.default_backend() == needed and mesh is None):
        return config
    where = f"on {jax.default_backend()}" if mesh is None else "over a mesh"
    logging.getLogger(__name__).warning("attention: reference %s, where %s does not run.", where, config.attention)
    return dataclasses.replace(config, attention="reference")


def target_of(config: ModelConfig, mesh: Mesh | None = None) -> Any:
    """Shapes, dtypes and shardings of a model's parameters: over a mesh as the rules say, or on the first device."""
    return merging.abstract(config, mesh)


def initial(config: RunConfig, target: Any) -> Any:
    """The parameters that `train.initial` names, in the dtypes and shardings of the abstract tree `target`.

    Every process keeps its own share only, leaf by leaf. Where `target` has the factors of an adapter, they are those
    that the run's seed makes. Raises UserError where the folder holds no model, or not the config's.
    """
    folder, alone = Path(config.train.initial), adapters.without(target)
    if (folder / config_json.FILE).is_file():
        _check_same(folder, config_json.read(folder)[0], config.model)
        params = reading.tree(folder, config.model.param_dtype, _placing(alone, cast=True))[2]
    else:
        source = stored(folder)
        _check_same(folder, source.config, config.model)
        params = merging.restore(source.parameters, alone, config.model, source.lora)
    factors = adapters.only(target)
    if not factors:
        return params
    first = jax.jit(
        lambda: adapters.only(model.initialise(config.model, seeds.key(config.seed), config.train.lora)),
        out_shardings=rules.shardings_of(factors),
    )()
    return masks.merge(params, first)


def _placing(target: Any, cast: bool = False) -> Callable[[str, np.ndarray], jax.Array]:
    """A function that places a leaf as the abstract tree says, with `cast` in its dtype too."""

    def place(path: str, leaf: np.ndarray) -> jax.Array:
        like = table.find(target, path)
        kind = like.dtype if cast else leaf.dtype
        return jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index].astype(kind))

    return place


def _check_same(folder: Path, found: ModelConfig, asked: ModelConfig) -> None:
    """Raises UserError naming the first field in which a model differs from the one that a run's config asks for."""
    # How it is computed, kept, or was begun may differ; the pattern is compared by the layers it makes.
    free = ("attention", "compute_dtype", "param_dtype", "max_positions", "init_std", "pattern")
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in free]
    for name in [*names, "layer_kinds"]:
        if getattr(found, name) != getattr(asked, name):
            shown = "pattern" if name == "layer_kinds" else name
            raise UserError(
                f"config key train.initial: the model in {folder} has {shown} = {getattr(found, name)}, the config "
                f"says model.{shown} = {getattr(asked, name)}: correct the config, or give another folder."
            )


def load(
    folder: Path, mesh: Mesh | None = None, dtype: str | None = None, adapter: Path | None = None
) -> tuple[LanguageModel, Tokenizer | None]:
    """The model and tokenizer of a folder: a run's (its newest checkpoint), an imported one, or a checkpoint's.

    Leaf by leaf onto the first device, or on a mesh split as `LanguageModel` says. `dtype` is that of parameters and
    computing; by default both are as they were trained or stored. `adapter` is a folder of PEFT's with a LoRA of a
    checkpoint, which is merged into it. The tokenizer is None where the folder holds none.
    Raises UserError where `folder` is none of these or is damaged, or `dtype` is not in m1jax.config.DTYPES.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if (folder / config_json.FILE).is_file():
        target = target_of(config_json.read(folder)[0], mesh)
        config, rope_base, params = reading.tree(folder, dtype, _placing(target), adapter)
        tokenizer = tokenizer_in(folder, config_json.token_ids(folder))
        return LanguageModel(config, rope_base, params, mesh, _ends(folder)), tokenizer
    if adapter is not None:
        raise UserError(
            f"an adapter is merged into a Hugging Face checkpoint, {folder} is a run or an import: export it first."
        )
    source = stored(folder)
    found = language_model(source.config, source.rope_base, source.parameters, dtype, mesh=mesh, lora=source.lora)
    found.eos_ids = config_json.ends(source.token_ids, source.generation, folder)
    return found, tokenizer_in(source.tokenizer, source.token_ids)


def language_model(
    config: ModelConfig,
    rope_base: float,
    folder: Path,
    dtype: str | None,
    rounded_to: str | None = None,
    mesh: Mesh | None = None,
    lora: LoraConfig | None = None,
) -> LanguageModel:
    """The model of parameters in an Orbax folder, in `dtype` (default: as stored), first rounded to another.

    An adapter's factors are merged into it.
    """
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
    on_disk = merging.opened(folder, config, lora)

    def leaf(path: tuple[Any, ...], abstract: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        own = on_disk.dtype(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jax.ShapeDtypeStruct(abstract.shape, rounded_to or dtype or own, sharding=abstract.sharding)

    config = computed_here(config, mesh)
    target = jax.tree_util.tree_map_with_path(leaf, target_of(config, mesh))
    params = merging.restore(folder, target, config, lora)
    if rounded_to is not None and rounded_to != dtype:
        params = jax.tree.map(lambda value: value.astype(dtype), params)
    return LanguageModel(config, rope_base, params, mesh)


def tokenizer_in(folder: Path | None, token_ids: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a folder; None where there is none. `token_ids` as a checkpoint's config.json has them.

    Where nothing says which token begins or pads a text, it is the one that ends it.
    """
    if folder is None or not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    first = {key.removesuffix("_token_id"): value for key, value in config_json.single(token_ids).items()}
    try:
        return tokenizers.load(folder, SpecialIds(**first))
    except UserError:
        if "eos" not in first:
            raise
        return tokenizers.load(folder, SpecialIds(**{"bos": first["eos"], "pad": first["eos"], **first}))
