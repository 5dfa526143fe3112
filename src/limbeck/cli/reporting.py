"""How a command ends: errors as a message and an exit code, Ctrl-C and a full disk with the command that resumes."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

FULL = 3
"""The exit code where the disk is full."""


@contextmanager
def reporting(resume: str = "") -> Iterator[None]:
    """Show what the user can fix as a message, and end with an exit code; torch is not imported.

    Exit codes are 2 for a message, 3 for a full disk, 130 for Ctrl-C, or the error's own.

    Args:
        resume: the command line that resumes what was interrupted.
    """
    from limbeck.cli.terminal import console
    from limbeck.errors import LimbeckError

    screen = console(stderr=True, soft_wrap=True)
    advice = f"To resume: {resume}" if resume else ""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has gone; typer ends in silence
    except (LimbeckError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = FULL if full else error.exit_code if isinstance(error, LimbeckError) else 2
        screen.print("error: ", style="bold red", end="")
        screen.print(f"the disk is full: {error}" if full else str(error))
        if code == FULL and advice:
            screen.print(f"Make room first. {advice}")
        raise typer.Exit(code) from error
    except KeyboardInterrupt as stop:
        screen.print(f"\nstopped. {advice}".rstrip())
        raise typer.Exit(130) from stop
