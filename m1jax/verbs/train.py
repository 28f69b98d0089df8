"""`m1 train`: rows, curriculum, model and loop put together."""

import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from m1jax import __version__, loading, model
from m1jax.config import RunConfig, to_dict
from m1jax.curriculum.loader import Loader
from m1jax.objectives.next_token import next_token_loss
from m1jax.parallel import measure
from m1jax.parallel import mesh as meshes
from m1jax.parallel import processes as joining
from m1jax.parallel.processes import Processes
from m1jax.show import console as consoles
from m1jax.train.checkpoint.checkpoints import Checkpoints, Meta
from m1jax.train.checkpoint.emergency import EmergencyCheckpoints
from m1jax.train.hooks.journal import Journal, read_journal
from m1jax.train.hooks.progress import ProgressBar
from m1jax.train.loop import Profile, fit
from m1jax.train.run import goodput, history
from m1jax.train.run.liveness import Liveness
from m1jax.train.run.reports import Callback, StepReport
from m1jax.verbs import jax_setup
from m1jax.verbs.curriculum import open_curriculum

STARTS = "starts.jsonl"
VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def journal_folder(config: RunConfig) -> Path:
    """Where metrics.jsonl and the TensorBoard events of a run lie."""
    return Path(config.folder) / "train"


def history_file(config: RunConfig) -> Path:
    """Where it is written when a run's stages were changed ahead."""
    return Path(config.folder) / "train" / "history.jsonl"


def run(
    config: RunConfig,
    amend: bool = False,
    processes: Processes | None = None,
    profile: tuple[int, int] | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains from the newest checkpoint, or from the seed, to the last step of the last stage.

    `processes` says how this process joins the others of the run, where the machine does not. `amend` accepts that the
    stages ahead of the checkpoint were changed, and writes it into the run's history. `profile` names the first and
    last step (from 1) of a trace for XProf; `callbacks` are told of every step on process 0. Raises UserError for rows,
    a tokenizer or a checkpoint that do not fit the config, and InterruptedRunError (saved) on a signal.
    """
    jax_setup.prepare()
    joining.start(processes)
    with Liveness(journal_folder(config)) as watch:
        _train(config, amend, profile, [watch], callbacks)


def _train(
    config: RunConfig,
    amend: bool,
    profile: tuple[int, int] | None,
    everywhere: Sequence[Callback],
    callbacks: Sequence[Callback],
) -> None:
    """`run` once all processes are there; `everywhere` are callbacks of every process."""
    first_process = jax.process_index() == 0
    console = consoles.make(quiet=not first_process)
    mesh = meshes.make(config.mesh)
    meshes.check_batches(config, mesh)
    curriculum, stores = open_curriculum(config)
    loader = Loader(curriculum, stores, *meshes.row_share(mesh))
    checkpoints = Checkpoints(config.checkpoints, config.train.keep_checkpoints, config.train.keep_every)
    console.print(
        f"{config.model.num_parameters:,} parameters, {config.total_steps:,} steps on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} device(s), attention {config.model.attention!r}."
    )
    if not measure.has_peak(mesh.devices.flat[0]):
        console.print(f"The peak FLOP/s of {mesh.devices.flat[0].device_kind} is not in m1jax/hardware.py: MFU is n/a.")
    record, folder = curriculum.record(), journal_folder(config)
    bar = ProgressBar(console, config.train.log_every)
    journals: list[Journal] = []

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, soft_wrap=True)

    def on_start(first: int, saved: Meta | None) -> Sequence[Callback]:
        changes = curriculum.check(saved.curriculum, first, amend) if saved else []
        if changes:
            say(f"Amended after step {first}: {'; '.join(changes)}.")
        if first:
            say(f"Going on after step {first} of {config.total_steps}.")
        if not first_process:
            return everywhere
        if changes:
            history.append(history_file(config), first, changes)
        goodput.note_start(folder / STARTS, first)
        journals.append(Journal(folder, first))
        return [*everywhere, bar, functools.partial(_record, journals[0]), *callbacks]

    emergency = None
    if config.train.emergency_every:
        emergency = EmergencyCheckpoints(Path(config.train.emergency_folder), checkpoints, say)
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
                emergency=emergency,
                meta=Meta(run=to_dict(config), curriculum=record, versions=_versions()),
                on_start=on_start,
                say=say,
                initial=functools.partial(loading.initial, config) if config.train.initial else None,
                profile=Profile(*profile, folder / "profile") if profile else None,
            )
    finally:
        for journal in journals:
            journal.close()
        if emergency:
            emergency.close()
        checkpoints.close()
    say(f"Trained. Checkpoints in {config.checkpoints}, metrics in {folder}.")
    if first_process:
        say(goodput.measure(folder / STARTS, read_journal(folder / "metrics.jsonl"), time.time()).sentence)


def _record(journal: Journal, report: StepReport) -> None:
    """Everything in a report that changes from step to step."""
    values = dataclasses.asdict(report)
    norms = values.pop("norms")
    for name in ("step", "stage", "total_steps"):
        values.pop(name)
    values |= {"skipped": int(report.skipped), "rows": list(report.rows), **norms}
    journal.write(report.step, report.stage, {name: value for name, value in values.items() if value is not None})


def _versions() -> dict[str, str]:
    return {"m1jax": __version__, **{name: importlib.metadata.version(name) for name in VERSIONS}}
