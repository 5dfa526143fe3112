"""Trains the teacher and the students of a demonstration, each into a run folder of its own.

A training that is finished is read from its folder, and one that was stopped is resumed.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck
from benchmarks.tasks.demonstrations import Demonstration
from limbeck.data import Data
from limbeck.experiment.results import NetworkResult

Trained = tuple[nn.Module, NetworkResult]
"""A network in eval mode and its figures."""


def train_teacher(demonstration: Demonstration, folder: Path) -> Trained:
    """Train the teacher with seed 0 on its own images."""
    network, result = _train(
        demonstration,
        demonstration.teacher,
        data=demonstration.teacher_data(),
        method="alone",
        epochs=demonstration.teacher_epochs,
        seed=0,
        out=folder / "teacher",
    )
    return network, replace(result, arm="teacher")


def train_student(demonstration: Demonstration, teacher: nn.Module, arm: str, seed: int, folder: Path) -> Trained:
    """Train a student. Those of one seed have the same initial weights and the same batches in every arm."""
    options = demonstration.methods.get(arm, {})
    return _train(
        demonstration,
        demonstration.student,
        teacher=None if arm == "alone" else teacher,
        data=demonstration.data(),
        method={"name": arm, **options},
        epochs=demonstration.epochs - options.get("hint_epochs", 0),
        seed=seed,
        out=folder / arm / f"seed{seed}",
    )


def train_students(
    demonstration: Demonstration, teacher: nn.Module, *, seeds: Sequence[int], folder: Path, jobs: int
) -> Iterator[NetworkResult]:
    """Train every arm of every seed in ``jobs`` processes of one thread, and yield the figures as they come."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        arms = [(arm, seed) for seed in seeds for arm in demonstration.arms]
        waiting = [pool.submit(_figures, demonstration, teacher, arm, seed, folder) for arm, seed in arms]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _figures(*arguments: Any) -> NetworkResult:
    return train_student(*arguments)[1]


def _train(
    demonstration: Demonstration,
    build: Callable[[], nn.Module],
    *,
    data: Data,
    seed: int,
    teacher: nn.Module | None = None,
    **options: Any,
) -> Trained:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    network, result = limbeck.distill(
        teacher,
        network,
        data,
        seed=seed,
        task=demonstration.options,
        batch_size=64,
        optimizer=dict(demonstration.optimizer),
        baseline=False,
        allow=demonstration.allow,
        device="cpu",
        precision="32",
        progress=False,
        **options,
    )
    return network, result.student
