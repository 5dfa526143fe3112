"""A run folder that the first of several processes reads and writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from limbeck.experiment.in_memory import Folder
from limbeck.train.processes import Processes


def of_first(ours: Processes, path: Path, make: Callable[[], Folder]) -> Folder:
    """The folder that ``make`` opens at ``path`` in the first process. The others get what its methods return there."""
    return make() if ours.count == 1 else cast("Folder", _OfFirst(ours, path, make))


class _OfFirst:
    """Each method runs in the first process, and returns in all processes what it returned there."""

    def __init__(self, ours: Processes, path: Path, make: Callable[[], Folder]) -> None:
        self.path, self.notes = path, list[str]()
        self._ours = ours
        self._folder: Folder | None = None
        ours.first(lambda: self._open(make))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            return self._ours.first(lambda: getattr(self._folder, name)(*arguments, **options))

        return call

    def _open(self, make: Callable[[], Folder]) -> None:
        self._folder = make()
        self.notes = self._folder.notes
