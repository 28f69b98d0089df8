"""What a user can put right, as one sentence: what was wrong, where, what to do; and how a run ends."""

FAILURE = 1
USER_ERROR = 2
"""Exit status of a mistake that a user can put right."""
AGAIN = 75
"""Exit status (sysexits' EX_TEMPFAIL) of a run that was interrupted or lost a process: it is to be started again."""
INTERRUPTED = 130
"""Exit status after Ctrl-C (128 + SIGINT, as shells count)."""


def first_line(error: BaseException | str, limit: int = 200) -> str:
    """The first line of an error's message without its full stop, at most `limit` characters; else the error's type.

    What a library said, short enough for a sentence of ours.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:limit].rstrip(".")


class UserError(Exception):
    """A mistake of input or surroundings; the command prints its message and exits with status 2.

    The message is one sentence that names the file or key, says what was found and what to do. Anything else that
    is raised is a failure of m1jax itself: exit status 1.
    """


class InterruptedRunError(Exception):
    """A signal asked a run to stop and it has saved: the same command continues it; exit status AGAIN."""
