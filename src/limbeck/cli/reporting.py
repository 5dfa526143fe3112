"""Turn exceptions of a command into messages and exit codes. For Ctrl-C and a full disk, show how to resume."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer


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
    again = "start torchrun again with --resume" if several_processes() else resume
    advice = f"To resume: {again}" if resume else ""
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
    except RuntimeError as error:
        if several_processes() and any(word in str(error) for word in ("onnection", "NCCL")):
            screen.print(f"another process has failed. {advice}")
        raise
    except KeyboardInterrupt as stop:
        screen.print(f"\nstopped. {advice}".rstrip())
        raise typer.Exit(130) from stop
