"""Work in threads, a few items ahead of the caller."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

THREADS = 4


def in_threads(
    function: Callable[[_Given], _Made], items: Iterable[_Given], threads: int | None = None
) -> Iterator[_Made]:
    """The results in the order of the items. Items are taken in this thread, at most one a thread ahead.

    ``threads`` is by default one a processor, at most `THREADS`.
    """
    threads = threads or min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Made]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
