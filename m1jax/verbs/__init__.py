"""The `m1` command: one file a verb.

A verb's file holds `arguments(parser)`, which adds its arguments; `run(args)`, which returns the exit status (None is
0); and the work that ties rooms together. A new verb is one file here and one line of the table in command.py. The file
is imported only when its verb is named. Imports that load JAX take seconds: they are inside the functions that need
them, so that `m1 VERB --help` and a mistake in the arguments answer at once. No verb's file imports another's: what two
verbs need belongs to a room below. (quickstart runs the other verbs through `main`.)
"""

from m1jax.verbs.command import main

__all__ = ["main"]
