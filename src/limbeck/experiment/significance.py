"""Whether a count can be due to chance."""

UNSURE = 0.01
"""The significance level of the tests."""


def at_least(hits: int, count: int, share: float) -> float:
    """The probability of at least so many hits in ``count`` trials that each succeed with probability ``share``."""
    from scipy.special import bdtrc  # type: ignore[import-untyped]  # takes a second to import

    return 1.0 if hits <= 0 else float(bdtrc(hits - 1, count, share))
