"""`m1 prefer`: from a folder of preferences and a model to one that answers as was preferred.

It copies the model's tokenizer, then runs `m1 corpus --preferences`, `m1 pack`, `m1 curriculum` and `m1 train`, each
printed before it runs. Each of them recognises its own complete result, so the same command continues.
"""

import argparse
from pathlib import Path

from m1jax.show import console as consoles
from m1jax.verbs import tuning
from m1jax.verbs.arguments import Parser, add_preferences, config_of, example

OBJECTIVES = ("preference", "reward")


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 prefer --config configs/prefer_quickstart.py --preferences my_preferences/")
    add_preferences(parser)
    tuning.arguments(parser)
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        help="preference: a model that answers so (the config's own by default); reward: one that says how good an "
        "answer is",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the run's held-out measurements instead of training")


def run(args: argparse.Namespace) -> int:
    """Runs the verb: returns the first status of a command that is not 0, else 0."""
    if args.objective:
        args.overrides = [*args.overrides, f"objective={args.objective}"]
    if args.plot:
        from m1jax.show import preferences

        console = consoles.make()
        console.print(preferences.plot(config_of(args), Path(args.plot)), highlight=False)
        console.print(f"Plot in {args.plot}.", highlight=False)
        return 0
    return tuning.walk(args, "preferences", args.preferences, OBJECTIVES)
