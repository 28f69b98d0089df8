"""`m1 train`: rows, curriculum, model and loop put together."""

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import jax

from m1jax import __version__, model
from m1jax.config import RunConfig, to_dict
from m1jax.data.loader import Loader
from m1jax.parallel import mesh as meshes
from m1jax.parallel import processes as joining
from m1jax.parallel.processes import Processes
from m1jax.recipes import console as consoles
from m1jax.recipes import jax_setup, loading
from m1jax.recipes.curriculum import open_curriculum
from m1jax.train import history
from m1jax.train.checkpoint import Checkpoints, Meta
from m1jax.train.loop import Callback, StepReport, fit
from m1jax.train.loss import next_token_loss
from m1jax.train.metrics import Journal
from m1jax.train.progress import ProgressBar

VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def journal_folder(config: RunConfig) -> Path:
    """Where metrics.jsonl and the TensorBoard events of a run lie."""
    return Path(config.folder) / "train"


def history_file(config: RunConfig) -> Path:
    """Where it is written when a run's stages were changed ahead."""
    return Path(config.folder) / "train" / "history.jsonl"


def run(config: RunConfig, amend: bool = False, processes: Processes | None = None) -> None:
    """Trains from the newest checkpoint, or from the seed, to the last step of the last stage.

    `processes` says how this process joins the others of the run, where the machine does not. `amend` accepts that the
    stages ahead of the checkpoint were changed, and writes it into the run's history. Raises UserError for rows, a
    tokenizer or a checkpoint that do not fit the config, and InterruptedRunError (saved) on a signal.
    """
    jax_setup.prepare()
    joining.start(processes)
    console = consoles.make(quiet=jax.process_index() != 0)
    mesh = meshes.make(config.mesh)
    meshes.check_batches(config, mesh)
    curriculum, stores = open_curriculum(config)
    loader = Loader(curriculum, stores, *meshes.row_share(mesh))
    checkpoints = Checkpoints(config.checkpoints, config.train.keep_checkpoints)
    console.print(
        f"{config.model.num_parameters:,} parameters, {config.total_steps:,} steps on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} device(s), attention {config.model.attention!r}."
    )
    record = curriculum.record()
    if (done := checkpoints.latest_step()) is not None:
        changes = curriculum.check(checkpoints.meta().curriculum, done, amend)
        if changes:
            console.print(f"Amended after step {done}: {'; '.join(changes)}.", highlight=False)
            if jax.process_index() == 0:
                history.append(history_file(config), done, changes)
    bar = ProgressBar(console, config.train.log_every)
    journals: list[Journal] = []

    def on_start(first: int) -> Sequence[Callback]:
        if first:
            console.print(f"Going on after step {first} of {config.total_steps}.")
        if jax.process_index():
            return []
        journals.append(Journal(journal_folder(config), first))
        return [bar, functools.partial(_record, journals[0])]

    try:
        with bar:
            fit(
                config,
                mesh=mesh,
                init_params=functools.partial(model.initialise, config.model, config.seed),
                params_axes=model.abstract(config.model).axes,
                loss_fn=next_token_loss(config, mesh),
                batches=lambda first: loader.batches(first, config.total_steps),
                checkpoints=checkpoints,
                meta=Meta(run=to_dict(config), curriculum=record, versions=_versions()),
                on_start=on_start,
                initial=functools.partial(loading.initial, config) if config.train.initial else None,
            )
    finally:
        for journal in journals:
            journal.close()
        checkpoints.close()
    console.print(f"Trained. Checkpoints in {config.checkpoints}, metrics in {journal_folder(config)}.")


def _record(journal: Journal, report: StepReport) -> None:
    values = {name: value for name, value in vars(report).items() if name not in ("step", "total_steps")}
    journal.write(report.step, {**values, "skipped": int(report.skipped)})


def _versions() -> dict[str, str]:
    return {"m1jax": __version__, **{name: importlib.metadata.version(name) for name in VERSIONS}}
