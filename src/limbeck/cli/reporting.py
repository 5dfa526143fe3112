"""Turn exceptions of a command into messages and exit codes.

For Ctrl-C, a full disk, and a failure among several processes, show how to resume.
"""

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

_LOST = re.compile(
    "(gloo|NCCL).*"
    "(Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|remote process exited)",
    re.DOTALL,
)
"""What gloo and NCCL say when another process is lost."""

PATIENCE = 10.0
"""Seconds before a process that is not the first reports an error: if all have it, torchrun ends this one meanwhile."""


@contextmanager
def reporting(resume: str = "", *, several: bool = False) -> Iterator[None]:
    """Print errors that the user can fix as messages and exit with a code. Torch is not imported.

    The exit code is that of the LimbeckError (2 by default, 3 if training diverged), 3 for a full disk, 2 for other
    OSErrors, 130 for Ctrl-C. ``resume`` is the command line that resumes the command. Torchrun may start the command
    only if ``several`` is true.
    """
    from limbeck.cli.terminal import console, process_number, several_processes
    from limbeck.errors import DamagedStore, LimbeckError
    from limbeck.files.atomic import NoSpace

    screen = console(stderr=True, soft_wrap=True)
    advice = f"To resume: {started_again(resume)}" if resume else ""
    try:
        if several_processes() and not several:
            raise LimbeckError("several processes can only run a recipe: torchrun ... -m limbeck run RECIPE")
        yield
    except BrokenPipeError:
        raise  # the reader of the output is gone; typer exits silently
    except (LimbeckError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = NoSpace.exit_code if full else error.exit_code if isinstance(error, LimbeckError) else 2
        if process_number():
            time.sleep(PATIENCE)
            screen = console(stderr=True, soft_wrap=True, quiet=False)
            screen.print(f"process {process_number()}: ", end="")
        screen.print("error: ", style="bold red", end="")
        said = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:  # urllib's HTTPError has no strerror
            said = f"{error.filename}: {error.strerror}"
        screen.print(f"the disk is full: {said}" if full else said)
        if (full or isinstance(error, NoSpace | DamagedStore)) and advice:
            first = "Build the store again" if isinstance(error, DamagedStore) else "Free some disk space"
            screen.print(f"{first} first. {advice}")
        raise typer.Exit(code) from error
    except KeyboardInterrupt as stop:
        screen.print(f"\nstopped. {advice}".rstrip())
        raise typer.Exit(130) from stop
    except Exception as error:  # says which process failed, and raises it again
        if not several_processes():
            raise
        lost = isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
        said = "has lost the connection to another process" if lost else "has failed"
        if not lost:
            said += f". {advice}"
        elif process_number() < 2:  # one of these two, if the other one was killed
            said += f" ({error}). {advice}"
        screen = console(stderr=True, soft_wrap=True, quiet=False)
        screen.print(f"process {process_number()} {said}")
        if lost:  # only the process that has failed shows a traceback
            raise typer.Exit(1) from error
        raise


def started_again(resume: str) -> str:
    """The command that starts these processes again, with ``resume`` in each."""
    from limbeck.experiment.launch import torchrun

    return torchrun(resume, *(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")))
