"""The verdict on each of several methods: it helps, it hurts, or there is no evidence.

A method helps (hurts) if its mean difference to the baseline is above (below) 0 and both tests agree at the level 5 %:

1. the t-test, adjusted over the methods (Holm). Then the 95 % t interval does not contain 0.
2. the sign-flip test, not adjusted. It has no verdict with fewer than 6 seeds, whose smallest p-value is 0.0625.

If a method has no effect, exchanging its score and the baseline's score of a seed changes no probability, so that the
differences are symmetric around 0. Then the second test alone gives `no evidence` with a probability of at least 95 %,
whatever the distribution. The t-test alone would rely on a normal distribution, which 3 seeds cannot show. The first
test bounds the probability of one or more wrong verdicts over all methods by 5 % if the differences are normal. The
sign-flip test is not adjusted, because with 6 seeds twice its smallest p-value is above 5 %, so that no data could give
a verdict on 2 methods.

The seeds must be independent. They share the test split, and the verdict is about this split. A method that changes the
distribution of the scores but not their mean is not "without effect": with skewed differences, a wrong verdict on the
mean is then more probable than 5 %.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.comparison.statistics import LEVEL, Paired, detectable_difference, holm, paired, smallest_p

Verdict = Literal["helps", "no evidence", "hurts"]


@dataclass(frozen=True)
class Judged:
    """A method and its baseline over their common seeds."""

    paired: Paired
    p_adjusted: float  # of the t-test, over all methods
    smallest_p: float  # of the exact sign-flip test with n seeds; above 0.05, n seeds cannot give a verdict
    detectable: float | None  # see `compare_methods`, in the units of the score
    verdict: Verdict


def compare_methods(
    differences: Mapping[str, Sequence[float]],
    *,
    adjust: Callable[[Sequence[float]], tuple[float, ...]] = holm,
) -> dict[str, Judged]:
    """Compare several methods with one baseline, with the rule above.

    ``detectable`` is a bound on what the seeds can show: with this deviation, a smaller true difference has a verdict
    with a probability below 80 %. It is that of one t-test. The verdict needs more, so its probability at this
    difference may be lower: with normal differences and one method it is 61 % with 6 seeds, 76 % with 7 and about 80 %
    with more. With several methods it depends on the others. ``detectable`` is None if n is too small for a verdict or
    the deviation is 0.

    Args:
        differences: for each of m methods the differences to the baseline, one for each seed; above 0 is better.
        adjust: adjusts the p-values of the t-tests over the methods: `holm` or `benjamini_hochberg`.
    """
    found = {name: paired(values) for name, values in differences.items()}
    adjusted = adjust([one.p_t for one in found.values()])
    return {name: _judged(one, p) for (name, one), p in zip(found.items(), adjusted, strict=True)}


def _judged(one: Paired, p_adjusted: float) -> Judged:
    smallest = smallest_p(one.n)
    verdict: Verdict = "no evidence"
    if max(p_adjusted, one.p_sign_flip) <= LEVEL:
        verdict = "helps" if one.mean > 0 else "hurts"
    detectable = None
    if one.deviation and smallest <= LEVEL:
        detectable = detectable_difference(one.deviation, one.n)
    return Judged(one, p_adjusted, smallest, detectable, verdict)
