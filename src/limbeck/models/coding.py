"""Huffman codes: the last stage of deep compression (Han, Mao, Dally 2016, arXiv 1510.00149, section 4).

In the paper, the symbols are the cluster indices of a layer's weights and the gaps between the remaining weights. The
codes are canonical: the code lengths determine them, so a file stores only the lengths and the bits.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from limbeck.core import LimbeckError


def code_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Return the length in bits of each symbol in an optimal prefix code. Ties are broken by the symbols.

    The lengths satisfy sum 2^-length = 1 (Kraft). Their mean under the counts is at least the entropy and less than
    1 bit above it. A single symbol is the exception: its code has one bit.

    Args:
        counts: the number of occurrences of each symbol, 1 or more.

    Raises:
        LimbeckError: ``counts`` is empty, or a count is below 1.
    """
    if not counts or min(counts.values()) < 1:
        raise LimbeckError(f"got the counts {dict(counts)}, needed is at least one symbol and counts of 1 and more")
    if len(counts) == 1:
        return dict.fromkeys(counts, 1)
    lengths = dict.fromkeys(sorted(counts), 0)
    # Each heap entry is a tree: its count, its smallest symbol and its symbols. No two trees share a symbol.
    trees = [(count, symbol, [symbol]) for symbol, count in counts.items()]
    heapq.heapify(trees)
    while len(trees) > 1:
        (low, first, left), (high, second, right) = heapq.heappop(trees), heapq.heappop(trees)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(trees, (low + high, min(first, second), left + right))
    return lengths


def canonical_codes(lengths: Mapping[int, int]) -> dict[int, str]:
    """Return the code of each symbol as a string of 0s and 1s. In order of length and symbol, each is the last plus 1.

    Args:
        lengths: the length of each symbol in bits, from `code_lengths`.

    Raises:
        LimbeckError: ``lengths`` is empty, a length is below 1, or no prefix code has these lengths.
    """
    if not lengths or min(lengths.values()) < 1:
        raise LimbeckError(f"got the lengths {dict(lengths)}, needed is at least one symbol and lengths of 1 and more")
    codes, code, before = {}, -1, 0
    for symbol, length in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        code = (code + 1) << (length - before)
        before = length
        if code >> length:
            raise LimbeckError(f"no prefix code has the lengths {dict(lengths)}: the sum of 2^-length is above 1")
        codes[symbol] = f"{code:0{length}b}"
    return codes


def encode(symbols: Iterable[int], codes: Mapping[int, str]) -> bytes:
    """Return the concatenated codes of the symbols, padded with 0s to whole bytes.

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
    """Decode the first ``count`` symbols: the inverse of `encode`.

    Raises:
        LimbeckError: the data ends too early, or its bits match no code.
    """
    symbols = {code: symbol for symbol, code in codes.items()}
    longest = max(map(len, symbols), default=0)
    bits = "".join([f"{byte:08b}" for byte in data])
    decoded: list[int] = []
    start = end = 0
    while len(decoded) < count:
        end += 1
        if end > len(bits) or end - start > longest:
            raise LimbeckError(f"{len(data)} bytes contain {len(decoded)} symbols of this code, expected {count}")
        if bits[start:end] in symbols:
            decoded.append(symbols[bits[start:end]])
            start = end
    return decoded
