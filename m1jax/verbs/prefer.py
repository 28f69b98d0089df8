"""`m1 prefer`: from a folder of preferences and a model to one that answers as was preferred.

It copies the model's tokenizer, then runs `m1 corpus --preferences`, `m1 pack`, `m1 curriculum` and `m1 train`, each
printed before it runs. Each of them recognises its own complete result, so the same command continues.
"""

import argparse

from m1jax.verbs import tuning
from m1jax.verbs.arguments import Parser, add_preferences, example

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


def run(args: argparse.Namespace) -> int:
    """Runs the verb: returns the first status of a command that is not 0, else 0."""
    if args.objective:
        args.overrides = [*args.overrides, f"objective={args.objective}"]
    return tuning.walk(args, "preferences", args.preferences, OBJECTIVES)
