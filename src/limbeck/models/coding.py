"""Huffman codes: the last stage of deep compression (Han, Mao, Dally 2016, arXiv 1510.00149, section 4).

There the symbols are the cluster indices of a layer's weights and the gaps between those that are left. A code is
canonical: the lengths alone determine it, so they are all that a file needs besides the bits.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from limbeck.core import LimbeckError


def code_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Bits of each symbol in a shortest prefix code; ties are broken by the symbols, so that they are the same always.

    The lengths fill the tree, sum 2^-length = 1 (Kraft), and their mean under the counts is at least the entropy and
    less than 1 bit above it. The one exception is a single symbol, which gets one bit of a tree of two leaves.

    Args:
        counts: how often each symbol occurs, 1 or more.

    Raises:
        LimbeckError: there is no symbol, or a count is below 1.
    """
    if not counts or min(counts.values()) < 1:
        raise LimbeckError(f"a code is for symbols that occur at least once, got the counts {dict(counts)}")
    if len(counts) == 1:
        return dict.fromkeys(counts, 1)
    lengths = dict.fromkeys(sorted(counts), 0)
    # Each entry of the heap is a tree: its count, its least symbol and its symbols. No two trees share a symbol.
    trees = [(count, symbol, [symbol]) for symbol, count in counts.items()]
    heapq.heapify(trees)
    while len(trees) > 1:
        (low, first, left), (high, second, right) = heapq.heappop(trees), heapq.heappop(trees)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(trees, (low + high, min(first, second), left + right))
    return lengths


def canonical_codes(lengths: Mapping[int, int]) -> dict[int, str]:
    """The code of each symbol as 0s and 1s: in the order of length, then symbol, each is the last one plus 1.

    Args:
        lengths: bits of each symbol, from `code_lengths`.

    Raises:
        LimbeckError: there is no symbol, a length is below 1, or no prefix code has such lengths.
    """
    if not lengths or min(lengths.values()) < 1:
        raise LimbeckError(f"a code has one symbol or more, of one bit or more each, got the lengths {dict(lengths)}")
    codes, code, before = {}, -1, 0
    for symbol, length in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        code = (code + 1) << (length - before)
        before = length
        if code >> length:
            raise LimbeckError(f"no prefix code has the lengths {dict(lengths)}: the sum of 2^-length is above 1")
        codes[symbol] = f"{code:0{length}b}"
    return codes


def encode(symbols: Iterable[int], codes: Mapping[int, str]) -> bytes:
    """The symbols' codes one after the other, filled up with 0s to whole bytes.

    Raises:
        LimbeckError: a symbol has no code.
    """
    try:
        bits = "".join([codes[symbol] for symbol in symbols])
    except KeyError as error:
        raise LimbeckError(f"the symbol {error.args[0]} has no code: allowed are {sorted(codes)}") from None
    size = -(-len(bits) // 8)
    return int(bits.ljust(8 * size, "0") or "0", 2).to_bytes(size)


def decode(data: bytes, count: int, codes: Mapping[int, str]) -> Sequence[int]:
    """The first ``count`` symbols: `encode`'s inverse.

    Raises:
        LimbeckError: the bits end before, or are no code's.
    """
    symbols = {code: symbol for symbol, code in codes.items()}
    longest = max(map(len, symbols), default=0)
    bits = "".join([f"{byte:08b}" for byte in data])
    found: list[int] = []
    start = end = 0
    while len(found) < count:
        end += 1
        if end > len(bits) or end - start > longest:
            raise LimbeckError(f"{len(data)} bytes hold {len(found)} symbols of this code, {count} were wanted")
        if bits[start:end] in symbols:
            found.append(symbols[bits[start:end]])
            start = end
    return found
