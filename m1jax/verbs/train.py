"""`m1 train`: rows, curriculum, objective and trainer put together.

The functions that train import what loads JAX, which takes seconds, so that `m1 train --help` answers at once.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_processes, config_of, example, processes_of

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from rich.console import Console

    from m1jax.parallel.processes import Processes
    from m1jax.train.checkpoint.folder import Meta
    from m1jax.train.hooks.hook import Hook
    from m1jax.train.objective import Objective

STARTS = "starts.jsonl"


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 train {CONFIG} --set train.checkpoint_every=100")
    add_config(parser)
    parser.add_argument(
        "--amend",
        action="store_true",
        help="accept settings and stages that changed since the checkpoint, and record them",
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
        raise UserError(f"--profile {text} is not a range of steps: write FIRST:LAST, for instance 20:24.")
    return int(first), int(last)


def train(
    config: RunConfig,
    amend: bool = False,
    processes: "Processes | None" = None,
    profile: tuple[int, int] | None = None,
    hooks: Sequence["Hook"] = (),
) -> None:
    """Trains from the newest checkpoint, or from the seed, to the last step of the last stage.

    `processes` says how this process joins the others of the run, where that cannot be detected. `amend` accepts
    settings, and stages after the checkpoint, that have changed, and records them in the run's history. `profile` names
    the first and last step (from 1) of a trace for XProf; `hooks` join the run's own on process 0. Raises UserError for
    rows, a tokenizer or a checkpoint that do not fit the config and where another process trains in the run's folder,
    and InterruptedRunError (saved) on a signal.
    """
    from m1jax.parallel import jax_setup
    from m1jax.parallel import processes as joining
    from m1jax.train.hooks.profile import Profile
    from m1jax.train.run.lease import Lease
    from m1jax.train.run.liveness import Liveness

    jax_setup.prepare()
    joining.start(processes)
    import jax

    console = consoles.make(quiet=jax.process_index() != 0)
    traced = [Profile(*profile, config.journal / "profile")] if profile else []
    with (
        Lease(config.journal, functools.partial(console.print, highlight=False, soft_wrap=True)) as lease,
        Liveness(config.journal, leaving=lease.release) as watch,
    ):
        _train(config, amend, console, [lease, watch, *traced], hooks)


def _train(
    config: RunConfig, amend: bool, console: "Console", everywhere: Sequence["Hook"], more: Sequence["Hook"]
) -> None:
    """`train` in a folder of its own; `everywhere` are hooks of every process, `more` those of process 0."""
    import jax

    from m1jax import loading, objectives
    from m1jax.config import changes as compared
    from m1jax.config.tuning import trained_scalars
    from m1jax.curriculum.loader import Loader
    from m1jax.curriculum.opening import open_curriculum
    from m1jax.parallel import measure
    from m1jax.parallel import mesh as meshes
    from m1jax.train.hooks import trackers
    from m1jax.train.hooks.average import state_hooks
    from m1jax.train.hooks.journal import read_journal
    from m1jax.train.hooks.progress import ProgressBar
    from m1jax.train.loop import fit
    from m1jax.train.run import goodput, history
    from m1jax.train.trainer import Trainer

    if config.objective == "policy":
        raise UserError("config key objective = 'policy' learns from its own answers, not from rows: run `m1 rl`.")
    first_process = jax.process_index() == 0
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    mesh = meshes.make(config.mesh)
    meshes.check_batches(config, mesh)
    objective = objectives.make(config, mesh)
    curriculum, stores = open_curriculum(config)
    loader = Loader(curriculum, stores, *meshes.row_share(mesh), columns=objective.piece_columns)
    trained = trained_scalars(config.model, config.train.lora, config.train.trained)
    others = "" if trained == config.model.num_parameters else f" ({trained:,} trained)"
    say(
        f"{config.model.num_parameters:,} parameters{others}, {config.total_steps:,} steps on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} device(s), attention {config.model.attention!r}."
    )
    if not measure.has_peak(mesh.devices.flat[0]):
        say(f"The peak FLOP/s of {mesh.devices.flat[0].device_kind} is not in m1jax/hardware.py: MFU is n/a.")
    hooks = [*everywhere, *state_hooks(config.train), *_validation(config, mesh, objective)]
    if first_process:
        bar = ProgressBar(console, config.train.log_every)
        hooks += [bar, *trackers.of_run(config), *more]
    with Trainer(
        config,
        objective,
        mesh,
        hooks=hooks,
        curriculum=curriculum.record(),
        initial=functools.partial(objective.begin, functools.partial(loading.initial, config))
        if config.train.initial
        else None,
        say=say,
    ) as trainer:
        amended: list[str] = []
        noted: list[str] = []

        def check(saved: "Meta", step: int) -> None:
            data = curriculum.check(saved.curriculum, step, amend)
            settings = compared.check(saved.run, config, step, amend)
            amended[:], noted[:] = [*data, *settings.learned], settings.noted

        state = trainer.restore(check)
        first = int(state.step)
        if amended:
            say(f"Amended after step {first}: {'; '.join(amended)}.")
        if noted:
            say(f"After step {first}, these settings change rounding at most: {'; '.join(noted)}.")
        if first:
            say(f"Continuing after step {first} of {config.total_steps}.")
        if first_process:
            if amended or noted:
                history.append(config.history, first, [*amended, *noted])
            goodput.note_start(config.journal / STARTS, first)
        fit(trainer, state, lambda step: loader.batches(step, config.total_steps))
    say(f"Trained. Checkpoints in {config.checkpoints}, metrics in {config.journal}.")
    if first_process:
        lines = read_journal(config.journal / "metrics.jsonl")
        say(goodput.measure(config.journal / STARTS, lines, time.time()).sentence)


def _validation(config: RunConfig, mesh: "Mesh", objective: "Objective") -> list["Hook"]:
    """Held-out loss and bits per byte by source, or what is reported of pairs, where the config asks for it."""
    if not config.train.validate_every:
        return []
    from m1jax import tokenizer as tokenizers
    from m1jax.evaluate import heldout, heldout_pairs
    from m1jax.train.hooks.validation import Validation

    tokenizer = tokenizers.of_run(config)
    if objective.piece_columns:
        length = max(stage.row_length for stage in config.stages)
        rows = heldout_pairs.rows_of(config.corpus, tokenizer, length, config.train.validate_tokens)
        return [Validation(config, heldout_pairs.measure(config, mesh, objective, rows))]
    documents = heldout.encoded(config.corpus, tokenizer, min(config.data.row_lengths))
    return [Validation(config, heldout.measure(config, mesh, documents, tokenizer))]
