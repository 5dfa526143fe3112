"""Reads the features of networks, the inputs of their classifiers, after training."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.data import Batches, Data, Split
from limbeck.evaluate.features import class_scatter
from limbeck.experiment.workspace import example_batch
from limbeck.outline import outline
from limbeck.taps import dry_run, evaluation_mode
from limbeck.train.engine import Engine
from limbeck.train.readers import network_reader

SAMPLES = 1_000
"""The most test samples whose features are read."""

_BATCH = 100  # faster than the batches of the evaluation: its maps fit into the cache


class FeatureReader:
    """Reads the logits and the features of a network on samples, in 32 bits."""

    def __init__(self, name: str, network: nn.Module, data: Data, engine: Engine) -> None:
        self._network, self._data, self._device = engine.place(network), data, engine.device
        few = example_batch(data)
        feature = _feature(name, network, few)
        self._taps = (Tap(name), *((feature,) if feature else ()))
        plain = replace(engine, precision="32", compile=False)
        self._read = network_reader(network, self._taps, few.inputs.to(engine.device), plain)[0]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits (N, K) and, unless it has none, the features (N, D) of samples that are not normalised."""
        split = Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))
        batches = Batches(
            split,
            batch_size=_BATCH,
            seed=0,
            mean=self._data.mean,
            std=self._data.std,
            shuffle=False,
            device=self._device,
        )
        with evaluation_mode([self._network]):
            read = [self._read(batch) for batch in batches(0)]
        logits, *features = (torch.cat([tensors[tap].float().cpu() for tensors in read]) for tap in self._taps)
        return logits, features[0] if features else None


def _feature(name: str, network: nn.Module, few: Batch) -> Tap | None:
    """The input (N, D) of a network's classifier; None if it has no linear classifier, or its input cannot be read."""
    try:
        found = outline(name, network, few).feature
        dry_run({name: network}, [found], few)
    except LimbeckError:
        return None
    return found


def spread_evenly(total: int, count: int) -> Tensor:
    """The places of ``count`` samples, spread evenly over ``total``."""
    return torch.arange(count) * total // max(1, count)


def scatter_of(name: str, network: nn.Module, data: Data, engine: Engine) -> float | None:
    """`class_scatter` of a network's features on at most `SAMPLES` test samples; None if it has no feature."""
    places = spread_evenly(len(data.test), min(len(data.test), SAMPLES))
    features = FeatureReader(name, network, data, engine)(data.test.inputs[places])[1]
    return None if features is None else class_scatter(features, data.test.targets[places])
