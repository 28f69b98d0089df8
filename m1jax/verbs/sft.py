"""`m1 sft`: from a folder of conversations and a model to an assistant.

It copies the model's tokenizer, then runs `m1 corpus --conversations`, `m1 pack`, `m1 curriculum` and `m1 train`, each
printed before it runs. Each of them recognises its own complete result, so the same command continues.
"""

import argparse

from m1jax.verbs import tuning
from m1jax.verbs.arguments import Parser, add_conversations, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 sft --config configs/sft_quickstart.py --conversations my_conversations/")
    add_conversations(parser)
    tuning.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb: returns the first status of a command that is not 0, else 0."""
    return tuning.walk(args, "conversations", args.conversations, ("next_token",))
