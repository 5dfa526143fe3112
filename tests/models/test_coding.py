import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from limbeck.core import LimbeckError
from limbeck.models.coding import canonical_codes, code_lengths, decode, encode

messages = some.lists(some.integers(-20, 20), min_size=1, max_size=200)


def entropy(counts):
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def mean_length(counts, lengths):
    return sum(count * lengths[symbol] for symbol, count in counts.items()) / sum(counts.values())


def kraft(lengths):
    return sum(2.0**-length for length in lengths.values())


@given(messages)
def test_what_is_decoded_is_what_was_encoded(symbols):
    codes = canonical_codes(code_lengths(Counter(symbols)))
    assert decode(encode(symbols, codes), len(symbols), codes) == symbols


@given(messages.filter(lambda symbols: len(set(symbols)) > 1))
def test_the_lengths_fill_the_tree_and_reach_the_entropy(symbols):
    counts = Counter(symbols)
    lengths = code_lengths(counts)
    assert kraft(lengths) == 1
    assert entropy(counts) <= mean_length(counts, lengths) + 1e-9
    assert mean_length(counts, lengths) < entropy(counts) + 1


@given(messages)
def test_no_code_begins_with_another(symbols):
    codes = canonical_codes(code_lengths(Counter(symbols)))
    for one, code in codes.items():
        assert not any(code.startswith(other) for symbol, other in codes.items() if symbol != one)


@given(messages)
def test_the_bytes_are_as_many_as_the_lengths_say(symbols):
    counts = Counter(symbols)
    lengths = code_lengths(counts)
    bits = sum(count * lengths[symbol] for symbol, count in counts.items())
    assert len(encode(symbols, canonical_codes(lengths))) == math.ceil(bits / 8)


def shortest(counts):
    """The least mean length of all prefix codes, by trying every set of lengths that fits into a tree."""
    number = len(counts)
    sorted_counts = sorted(counts.values(), reverse=True)

    def tries(left, room):
        if left == 0:
            yield []
            return
        for length in range(1, number):
            if 2.0**-length <= room + 1e-12:
                for rest in tries(left - 1, room - 2.0**-length):
                    yield [length, *rest]

    least = min(
        sum(count * length for count, length in zip(sorted_counts, sorted(lengths), strict=True))
        for lengths in tries(number, 1.0)
    )
    return least / sum(sorted_counts)


@pytest.mark.parametrize("numbers", [(5, 1), (1, 1, 1), (8, 4, 2, 1), (1, 1, 1, 1, 1), (40, 30, 20, 5, 5), (7, 7, 6)])
def test_no_prefix_code_is_shorter(numbers):
    counts = dict(enumerate(numbers))
    assert mean_length(counts, code_lengths(counts)) == pytest.approx(shortest(counts))


def test_a_code_by_hand():
    """The two rarest are joined first; of one length the lesser symbol is first."""
    lengths = code_lengths({7: 10, 3: 5, 9: 3, 1: 2})
    assert lengths == {7: 1, 3: 2, 1: 3, 9: 3}
    codes = canonical_codes(lengths)
    assert codes == {7: "0", 3: "10", 1: "110", 9: "111"}
    assert encode([3, 7, 9], codes) == bytes([0b10011100])


def test_ties_are_broken_by_the_symbols_whatever_their_order():
    counts = [(symbol, 1 + symbol % 2) for symbol in range(9)]
    assert code_lengths(dict(counts)) == code_lengths(dict(reversed(counts)))


def test_counts_of_powers_of_two_reach_the_entropy():
    counts = {symbol: 2**symbol for symbol in range(1, 8)} | {0: 2}
    assert mean_length(counts, code_lengths(counts)) == pytest.approx(entropy(counts))


def test_a_single_symbol_takes_a_bit():
    assert code_lengths({4: 100}) == {4: 1}
    codes = canonical_codes({4: 1})
    assert encode([4] * 9, codes) == bytes(2)
    assert decode(bytes(2), 9, codes) == [4] * 9


def test_nothing_is_no_byte():
    assert encode([], {4: "0"}) == b""
    assert decode(b"", 0, {4: "0"}) == []


def test_the_indices_of_clustered_weights_come_back_and_take_less():
    """What deep compression encodes: many indices of few kinds, unevenly often."""
    indices = (torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 3).round().long().tolist()
    counts = Counter(indices)
    codes = canonical_codes(code_lengths(counts))
    packed = encode(indices, codes)
    assert decode(packed, len(indices), codes) == indices
    assert len(packed) < 0.99 * 4000 * math.ceil(math.log2(len(counts))) / 8
    assert entropy(counts) / 8 <= len(packed) / 4000 < (entropy(counts) + 1) / 8


@pytest.mark.parametrize("counts", [{}, {1: 0}, {1: 3, 2: -1}])
def test_counts_of_nothing_are_refused(counts):
    with pytest.raises(LimbeckError, match="needed is at least one symbol and counts of 1 and more"):
        code_lengths(counts)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({}, "at least one symbol"),
        ({1: 0}, "lengths of 1 and more"),
        ({1: 1, 2: 1, 3: 2}, "no prefix code has the lengths"),
    ],
)
def test_lengths_of_no_code_are_refused(lengths, message):
    with pytest.raises(LimbeckError, match=message):
        canonical_codes(lengths)


def test_a_symbol_without_a_code_is_refused():
    with pytest.raises(LimbeckError, match=r"the symbol 5 has no code: allowed are \[1, 2\]"):
        encode([1, 5], {1: "0", 2: "1"})


@pytest.mark.parametrize(
    ("data", "count", "codes"), [(b"", 1, {1: "0", 2: "1"}), (b"\x00", 9, {1: "0", 2: "1"}), (b"\xff", 1, {1: "0"})]
)
def test_bits_that_do_not_hold_the_symbols_are_refused(data, count, codes):
    with pytest.raises(LimbeckError, match=f"symbols of this code, expected {count}"):
        decode(data, count, codes)
