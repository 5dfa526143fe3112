"""Work in threads, a few pieces ahead of who takes the results."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

THREADS = 4


def in_threads(function: Callable[[_Given], _Made], items: Iterable[_Given]) -> Iterator[_Made]:
    """Each item's result, in their order; items are taken in this thread, no more ahead than there are threads."""
    threads = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Made]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
