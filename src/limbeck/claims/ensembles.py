"""Ensembles of the students of a study: the accuracy of their mean, and how often they disagree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from limbeck.comparison.sweep import Sweep
from limbeck.experiment.results import Spread, spread


@dataclass(frozen=True)
class Ensemble:
    """Networks and the mean of their probabilities, on the test split; fractions in [0, 1]."""

    networks: float  # mean accuracy of the networks
    accuracy: float  # of the class with the largest mean probability
    disagreement: float  # of samples with different predictions, mean over all pairs of networks; 0 for one network

    @property
    def gain(self) -> float:
        """The accuracy above that of the networks."""
        return self.accuracy - self.networks


def ensemble(logits: Sequence[Tensor], targets: Tensor) -> Ensemble:
    """The figures of one ensemble.

    Args:
        logits: (N, K) of each network.
        targets: (N,) class indices.
    """
    stacked = torch.stack(list(logits)).double()
    predicted = stacked.argmax(2)
    pairs = [(one != other).double().mean() for one, other in combinations(predicted, 2)]
    return Ensemble(
        networks=float((predicted == targets).double().mean()),
        accuracy=float((stacked.softmax(2).mean(0).argmax(1) == targets).double().mean()),
        disagreement=float(torch.stack(pairs).mean()) if pairs else 0.0,
    )


def ensembles(sweep: Sweep, size: int) -> Iterator[Ensemble]:
    """The ensembles of ``size`` students each, in the order of the seeds, of a finished sweep of one arm."""
    (arm,) = sweep.experiment.arms
    logits, targets = sweep.test_outputs(arm), sweep.experiment.data.test.targets
    for place in range(0, len(logits), size):
        yield ensemble(logits[place : place + size], targets)


def spreads(ensembles: Sequence[Ensemble]) -> Mapping[str, Spread]:
    """Each figure over several ensembles, by what it is called."""
    return {
        "mean of the networks": spread([one.networks for one in ensembles]),
        "ensemble": spread([one.accuracy for one in ensembles]),
        "disagreement": spread([one.disagreement for one in ensembles]),
    }
