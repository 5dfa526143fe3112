"""What backends and networks of users raise, which may be anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.core import LimbeckError
from limbeck.files.atomic import FULL, refusal


@contextmanager
def in_one_line(what: str, file: Path | None = None) -> Iterator[None]:
    """Turn what a backend or a network of the user raises into a LimbeckError of one line that begins with ``what``.

    Raises:
        OSError: the disk is full, also if the exception does not say so; ``file`` is what was written.
    """
    try:
        yield
    except LimbeckError:
        raise
    except Exception as error:
        cause = error if file is None or isinstance(error, OSError) else refusal(file)
        if isinstance(cause, OSError) and cause.errno in FULL:
            if cause is error:
                raise
            raise cause from error
        first: BaseException = error
        while first.__cause__ is not None:  # it names the operator
            first = first.__cause__
        why = next((line.strip() for line in str(first).splitlines() if line.strip()), type(first).__name__)
        raise LimbeckError(f"{what}: {why}") from error
