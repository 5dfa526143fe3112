"""Turn exceptions of a command into messages and exit codes.

For Ctrl-C, a full disk, and a failure among several processes, show how to resume.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer

_LOST = re.compile(
    "(gloo|NCCL).*"
    "(Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|remote process exited)",
    re.DOTALL,
)
"""What gloo and NCCL say when another process is lost."""


@contextmanager
def reporting(resume: str = "", *, several: bool = False) -> Iterator[None]:
    """Print errors that the user can fix as messages and exit with a code. Torch is not imported.

    The exit code is that of the LimbeckError (2 by default, 3 if training diverged), 3 for a full disk, 2 for other
    OSErrors, 130 for Ctrl-C. ``resume`` is the command line that resumes the command. Torchrun may start the command
    only if ``several`` is true.
    """
    from limbeck.cli.terminal import console, process_number, several_processes
    from limbeck.errors import LimbeckError
    from limbeck.files.atomic import NoSpace

    screen = console(stderr=True, soft_wrap=True)
    again = _started_again(resume) if several_processes() else resume
    advice = f"To resume: {again}" if resume else ""
    try:
        if several_processes() and not several:
            raise LimbeckError("several processes can only run a recipe: torchrun ... -m limbeck run RECIPE")
        if several_processes():  # now, because a process that is killed says nothing
            count = os.environ["WORLD_SIZE"]
            console().print(f"{count} processes; to resume if one of them fails: {again}", soft_wrap=True)
        yield
    except BrokenPipeError:
        raise  # the reader of the output is gone; typer exits silently
    except (LimbeckError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = NoSpace.exit_code if full else error.exit_code if isinstance(error, LimbeckError) else 2
        if process_number():
            screen = console(stderr=True, soft_wrap=True, quiet=False)
            screen.print(f"process {process_number()}: ", end="")
        screen.print("error: ", style="bold red", end="")
        said = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:  # urllib's HTTPError has no strerror
            said = f"{error.filename}: {error.strerror}"
        screen.print(f"the disk is full: {said}" if full else said)
        if (full or isinstance(error, NoSpace)) and advice:
            screen.print(f"Free some disk space first. {advice}")
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


def _started_again(resume: str) -> str:
    """The command that starts these processes again, with ``resume`` in each."""
    there = os.environ.get("LOCAL_WORLD_SIZE")
    if there != os.environ["WORLD_SIZE"]:
        return f"start torchrun again on each machine, with -m {resume}"
    return f"torchrun --nproc-per-node {there} -m {resume}"
