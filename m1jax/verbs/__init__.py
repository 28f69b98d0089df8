"""The `m1` command: verbs only. What a verb does is in m1jax/recipes/, imported when the verb runs."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from m1jax import __version__
from m1jax.errors import AGAIN, FAILURE, USER_ERROR, InterruptedRunError, UserError
from m1jax.verbs import arguments_data as data
from m1jax.verbs import arguments_machine as machine
from m1jax.verbs import arguments_planning as planning
from m1jax.verbs import arguments_training as training
from m1jax.verbs import arguments_weights as weights
from m1jax.verbs.arguments import CONFIG, TEXT_HELP, Parser, add


def parser() -> argparse.ArgumentParser:
    """The command's parser, with every verb."""
    top = Parser(
        prog="m1",
        description="Baichuan-M1 language models in JAX: from raw text to a checkpoint that PyTorch users load.",
        epilog="`m1 VERB --help` explains a verb and shows an example.",
    )
    top.add_argument("--version", action="version", version=f"m1jax {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    summary = "the whole road once, verb by verb, on real text"
    sub = add(verbs, "quickstart", summary, f"m1 quickstart {CONFIG}", _quickstart)
    sub.add_argument("--text", metavar="DIR", help=TEXT_HELP)
    for room in (data, training, planning, weights, machine):
        room.register(verbs)
    return top


def _quickstart(args: argparse.Namespace) -> int:
    from m1jax.verbs import quickstart

    return quickstart.run(args.config, args.overrides, text=args.text, main=main)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status: 0, 2 for a user's mistake, 75 for "start again", 1 for a failure."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        return _refuse(str(error), USER_ERROR, args.debug)
    except InterruptedRunError as error:
        return _refuse(str(error), AGAIN, args.debug)
    except KeyboardInterrupt:
        return _refuse("interrupted: the same command continues.", 130, args.debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:  # noqa: BLE001 (the door: whatever is left is told in one sentence)
        if reason := _surroundings(error):
            return _refuse(reason, USER_ERROR, args.debug)
        return _refuse(f"{type(error).__name__}: {error} (--debug shows where).", FAILURE, args.debug)


def _surroundings(error: Exception) -> str | None:
    """What the machine refused, as one sentence; None where the fault is m1jax's own."""
    where = getattr(error, "filename", None) or "the run's folder"
    # Writers in C++ (ArrayRecord, tensorstore, safetensors) report a full disk as errors of their own kinds.
    if getattr(error, "errno", None) == errno.ENOSPC or "no space left on device" in str(error).lower():
        return f"the disk that holds {where} is full: free some space and run the same command again."
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EACCES, errno.EROFS):
        return f"{where} cannot be written or read ({error.strerror}): mend its permissions or choose another folder."
    return f"{where}: {error.strerror or error}: check the path."


def _refuse(message: str, status: int, debug: bool) -> int:
    if debug:
        raise
    print(f"m1: {message}", file=sys.stderr)
    return status
