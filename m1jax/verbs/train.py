"""`m1 train`: rows, curriculum, model and loop put together.

The functions that train import what loads JAX, which takes seconds, so that `m1 train --help` answers at once.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m1jax import __version__
from m1jax.config import RunConfig, to_dict
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_processes, config_of, example, processes_of

if TYPE_CHECKING:
    from m1jax.parallel.processes import Processes
    from m1jax.train.hooks.journal import Journal
    from m1jax.train.run.reports import Callback, StepReport

STARTS = "starts.jsonl"
VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 train {CONFIG} --set train.checkpoint_every=100")
    add_config(parser)
    parser.add_argument(
        "--amend", action="store_true", help="accept changed stages ahead of the checkpoint, and write it down"
    )
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write an XProf trace of these steps (from 1)")
    group = parser.add_argument_group("instead of training")
    group.add_argument("--plot-schedule", action="store_true", help="draw the learning rate over all stages")
    group.add_argument(
        "--replay-norms", metavar="FILE", help="draw what each clip policy would have done with a metrics.jsonl's norms"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    processes, config = processes_of(args), config_of(args)
    profile = _steps(args.profile) if args.profile else None
    if args.plot_schedule:
        from m1jax.show import schedule_plot

        schedule_plot.plot(config)
    if args.replay_norms:
        from m1jax.show import norm_replay

        norm_replay.run(config, Path(args.replay_norms))
    if not (args.plot_schedule or args.replay_norms):
        train(config, args.amend, processes, profile)


def _steps(text: str) -> tuple[int, int]:
    """FIRST:LAST as numbers."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile {text} is no range of steps: write FIRST:LAST, for instance 20:24.")
    return int(first), int(last)


def train(
    config: RunConfig,
    amend: bool = False,
    processes: "Processes | None" = None,
    profile: tuple[int, int] | None = None,
    callbacks: Sequence["Callback"] = (),
) -> None:
    """Trains from the newest checkpoint, or from the seed, to the last step of the last stage.

    `processes` says how this process joins the others of the run, where the machine does not. `amend` accepts that the
    stages ahead of the checkpoint were changed, and writes it into the run's history. `profile` names the first and
    last step (from 1) of a trace for XProf; `callbacks` are told of every step on process 0. Raises UserError for rows,
    a tokenizer or a checkpoint that do not fit the config, and InterruptedRunError (saved) on a signal.
    """
    from m1jax.parallel import jax_setup
    from m1jax.parallel import processes as joining
    from m1jax.train.run.liveness import Liveness

    jax_setup.prepare()
    joining.start(processes)
    with Liveness(config.journal) as watch:
        _train(config, amend, profile, [watch], callbacks)


def _train(
    config: RunConfig,
    amend: bool,
    profile: tuple[int, int] | None,
    everywhere: Sequence["Callback"],
    callbacks: Sequence["Callback"],
) -> None:
    """`train` once all processes are there; `everywhere` are callbacks of every process."""
    import jax

    from m1jax import loading, model
    from m1jax.curriculum.loader import Loader
    from m1jax.curriculum.opening import open_curriculum
    from m1jax.objectives.next_token import next_token_loss
    from m1jax.parallel import measure
    from m1jax.parallel import mesh as meshes
    from m1jax.train.checkpoint.checkpoints import Checkpoints, Meta
    from m1jax.train.checkpoint.emergency import EmergencyCheckpoints
    from m1jax.train.hooks.journal import Journal, read_journal
    from m1jax.train.hooks.progress import ProgressBar
    from m1jax.train.loop import Profile, fit
    from m1jax.train.run import goodput, history

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
    record, folder = curriculum.record(), config.journal
    bar = ProgressBar(console, config.train.log_every)
    journals: list[Journal] = []

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, soft_wrap=True)

    def on_start(first: int, saved: Meta | None) -> Sequence["Callback"]:
        changes = curriculum.check(saved.curriculum, first, amend) if saved else []
        if changes:
            say(f"Amended after step {first}: {'; '.join(changes)}.")
        if first:
            say(f"Going on after step {first} of {config.total_steps}.")
        if not first_process:
            return everywhere
        if changes:
            history.append(config.history, first, changes)
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


def _record(journal: "Journal", report: "StepReport") -> None:
    """Everything in a report that changes from step to step."""
    values = dataclasses.asdict(report)
    norms = values.pop("norms")
    for name in ("step", "stage", "total_steps"):
        values.pop(name)
    values |= {"skipped": int(report.skipped), "rows": list(report.rows), **norms}
    journal.write(report.step, report.stage, {name: value for name, value in values.items() if value is not None})


def _versions() -> dict[str, str]:
    return {"m1jax": __version__, **{name: importlib.metadata.version(name) for name in VERSIONS}}
