"""Verbs of a run: train, eval, report."""

import argparse
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.verbs.arguments import CONFIG, add, config_of


def register(verbs: Any) -> None:
    """Adds the verbs to the command."""
    sub = add(verbs, "train", "train, or continue to", f"m1 train {CONFIG} --set train.checkpoint_every=100", _train)
    sub.add_argument(
        "--amend", action="store_true", help="accept changed stages ahead of the checkpoint, and write it down"
    )
    sub.add_argument("--profile", metavar="FIRST:LAST", help="write an XProf trace of these steps (from 1)")
    group = sub.add_argument_group("instead of training")
    group.add_argument("--plot-schedule", action="store_true", help="draw the learning rate over all stages")
    group.add_argument(
        "--replay-norms", metavar="FILE", help="draw what each clip policy would have done with a metrics.jsonl's norms"
    )
    group = sub.add_argument_group(
        "several processes", "Found by itself on a TPU pod, under Slurm and under Open MPI; elsewhere give all three."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many processes the run has")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")

    sub = add(verbs, "eval", "measure bits per byte and answer accuracy", f"m1 eval {CONFIG} --step 0", _eval)
    sub.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of step N, 0 the initial model (default: newest)"
    )
    sub.add_argument("--tasks", nargs="*", metavar="TASK", help="question sets to ask (default: all)")
    sub.add_argument("--limit", type=int, default=0, metavar="N", help="ask at most N questions of a set; 0 is all")
    sub.add_argument("--heldout-tokens", type=int, default=0, metavar="N", help="at most N tokens a source; 0 is all")
    sub.add_argument("--plain", action="store_true", help="ask questions without seqio (the numbers are the same)")
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")

    sub = add(verbs, "report", "summary table and loss plot of a run", f"m1 report {CONFIG}", _report)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _train(args: argparse.Namespace) -> None:
    given = (args.coordinator, args.processes, args.process)
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator, --processes and --process belong together: give all three, or none.")
    config = config_of(args)
    if args.plot_schedule:
        from m1jax.show import schedule_plot

        schedule_plot.plot(config)
    if args.replay_norms:
        from m1jax.show import norm_replay

        norm_replay.run(config, Path(args.replay_norms))
    if args.plot_schedule or args.replay_norms:
        return

    from m1jax.parallel.processes import Processes
    from m1jax.verbs import train as training

    training.run(
        config,
        amend=args.amend,
        processes=Processes(*given) if args.coordinator else None,
        profile=_steps(args.profile) if args.profile else None,
    )


def _steps(text: str) -> tuple[int, int]:
    """FIRST:LAST as numbers."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile {text} is no range of steps: write FIRST:LAST, for instance 20:24.")
    return int(first), int(last)


def _eval(args: argparse.Namespace) -> None:
    from m1jax.verbs import eval as evaluation

    evaluation.run(
        config_of(args),
        step=args.step,
        task_names=args.tasks,
        limit=args.limit,
        heldout_tokens=args.heldout_tokens,
        plain=args.plain,
        as_json=args.json,
    )


def _report(args: argparse.Namespace) -> None:
    from m1jax.verbs import report

    report.run(config_of(args), as_json=args.json)
