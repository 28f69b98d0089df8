"""`m1 prefer`: from a folder of preferences and a model to one that answers as was preferred.

It copies the model's tokenizer, then runs `m1 corpus --preferences`, `m1 pack`, `m1 curriculum` and `m1 train`, each
printed before it runs. Each of them recognises its own complete result, so the same command continues.
"""

import argparse

from m1jax.verbs import tuning
from m1jax.verbs.arguments import Parser, add_preferences, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 prefer --config configs/prefer_quickstart.py --preferences my_preferences/")
    add_preferences(parser)
    tuning.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb: returns the first status of a command that is not 0, else 0."""
    return tuning.walk(args, "preferences", args.preferences, "preference")
