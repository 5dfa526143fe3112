import os
import threading

import pytest

from limbeck.data.ahead import THREADS, in_threads


def test_results_come_in_the_order_of_the_items_and_no_more_are_taken_ahead_than_there_are_threads():
    taken = []
    threads = min(THREADS, os.cpu_count() or 1)
    for number, made in enumerate(in_threads(lambda item: item * item, (taken.append(i) or i for i in range(50)))):
        assert made == number * number
        assert len(taken) <= number + threads + 1
    assert taken == list(range(50))


def test_an_error_comes_where_its_result_would_and_ends_the_threads():
    before, found = threading.active_count(), []
    with pytest.raises(ZeroDivisionError):
        found.extend(in_threads(lambda item: 1 // (3 - item), range(50)))
    assert found == [0, 0, 1]
    assert threading.active_count() == before
