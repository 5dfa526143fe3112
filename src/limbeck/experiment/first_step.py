"""Try one real step of each stage, the evaluation and the measurement of cost on copies, before any training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Networks, Outputs, Stage, Tap, Term
from limbeck.data import Data
from limbeck.data.dividing import batch_sizes
from limbeck.evaluate import file_bytes, macs, predict
from limbeck.experiment.measuring import EVALUATION_BATCH
from limbeck.experiment.workspace import Workspace
from limbeck.taps import closed_kind, evaluation_mode
from limbeck.train.copies import deep_copy
from limbeck.train.engine import Engine
from limbeck.train.freeze import check_learns
from limbeck.train.loop import Diverged, run
from limbeck.train.timing import zeros_for

MOST = 2**30
"""The most bytes of inputs in the step that is tried; otherwise its batch has the size of the training's."""

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "bitsandbytes")


@dataclass
class _One:
    """An epoch of a single batch."""

    batch: Batch
    samples: int

    def __len__(self) -> int:
        return 1

    def __call__(self, epoch: int) -> Iterator[Batch]:
        yield self.batch

    def sweep(self) -> Iterator[Batch]:
        yield self.batch

    def example_inputs(self) -> Tensor:
        return self.batch.inputs[:2]


def first_step(
    stages: Sequence[Stage], networks: Networks, workspace: Workspace, *, stored: frozenset[Tap] = frozenset()
) -> list[str]:
    """Try one real step of each stage on copies, then the evaluation and the measurement of cost; returns notes.

    Networks, losses and random generators are left unchanged, and nothing is compiled. It takes about as long as one
    step of each stage. The taps ``stored`` are read from a store, so that the teacher does not run for them.

    Raises:
        LimbeckError: a network fails at the sizes or in the mode of the training; a network cannot learn or be saved.
            The message names the network, and what would fail.
    """
    data, engine = workspace.data, workspace.engine
    learning = list(dict.fromkeys(name for stage in stages for name in stage.networks))
    for name in learning:
        _check_learner(name, networks[name])
    split, batch = workspace.samples, _batch(workspace)
    eager = replace(engine, compile=False)
    plain = [unprepared(stage) for stage in stages]
    state = engine.generators()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            zeros = zeros_for(networks, stored, batch.inputs[:2], int(batch.index.max()) + 1)
            try:
                notes = _train(plain, networks, _One(batch, len(split)), eager, zeros)
            except Diverged as error:
                raise LimbeckError(str(error)) from error  # which ends a command with the code of a refusal
            except torch.OutOfMemoryError:
                notes = [f"a step of {len(batch.index)} samples was not tried: there is not enough memory for copies"]
            if engine.compile:
                for stage in stages:
                    _check_graphs(stage, networks, batch, eager, stored)
            live = {tap for stage in stages for tap in stage.reads} - stored
            idle = {tap.source for tap in stored} - {tap.source for tap in live}
            evaluated = [name for name in dict.fromkeys((*learning, *networks)) if name not in idle]
            single = _single(data)
            for name in evaluated:
                notes += _evaluated(name, eager.place(networks[name]), batch, data, single, learns=name in learning)
    finally:
        engine.restore_generators(state)
    return notes


def _train(
    stages: Sequence[Stage], networks: Networks, batches: _One, engine: Engine, zeros: Outputs | None
) -> list[str]:
    """Train one step of each stage on copies; if that fails, on the networks themselves, which are restored."""
    try:
        copied, copies = deep_copy((stages, dict(networks)), networks)
        return _steps(copied, copies, batches, engine, zeros)
    except (Diverged, torch.OutOfMemoryError):
        raise
    except Exception:  # a copy may fail where its network works, for example if hooks keep tensors in the network
        with as_they_were([*networks.values(), *(loss for stage in stages for loss in stage.losses)]):
            return _steps(stages, networks, batches, engine, zeros)


def _steps(
    stages: Sequence[Stage], networks: Networks, batches: _One, engine: Engine, zeros: Outputs | None
) -> list[str]:
    """Train one step of each stage; returns the notes of its epochs.

    Raises:
        LimbeckError: a step fails; the message names the network.
    """
    done, notes = 0, list[str]()
    try:
        for done, epoch in enumerate(run(stages, networks, batches, engine, store=zeros), start=1):  # noqa: B007
            notes += epoch.notes
    except Diverged:
        if done == 0:  # later stages start from other weights in the training itself
            raise
    except (LimbeckError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the networks may be the user's, and raise anything
        stage = stages[min(done, len(stages) - 1)]
        why = _culprit(stage, networks, batches.batch) or f"an error in stage {stage.name!r}"
        count = len(batches.batch.index)
        raise LimbeckError(
            f"a training step of {count} sample{'s' * (count > 1)} fails: {why}: {_said(error)}"
        ) from error
    return notes


def _culprit(stage: Stage, networks: Networks, batch: Batch) -> str:
    """Which network fails in a step of a stage, in words; empty if each network works alone."""
    read = {tap.source for tap in stage.reads}
    for name in [name for name in networks if name in read]:
        learns = name in stage.networks
        mode = "in train mode" if learns else "in eval mode"
        output = _tried(networks[name], batch.inputs, learns=learns)
        if isinstance(output, Exception):
            two = torch.cat([batch.inputs, batch.inputs])
            if len(batch.index) == 1 and isinstance(_tried(networks[name], two, learns=learns), Tensor):
                return f"the {name} does not run {mode} on one sample, but on two: use a batch_size of 2 or more"
            return f"the {name} does not run {mode}"
        if learns and isinstance(output, Tensor) and not output.requires_grad and Tap(name) in stage.reads:
            return f"the output of the {name} has no gradient: its forward may use no_grad or inference_mode"
    return ""


def _tried(network: nn.Module, inputs: Tensor, *, learns: bool) -> Any:
    """A network's output, or the exception that it raises; the network is restored."""
    device = next((parameter.device for parameter in network.parameters()), inputs.device)
    with as_they_were([network]), torch.set_grad_enabled(learns):
        for module in network.modules():
            module.training = learns
        try:
            return network(inputs.to(device))
        except Exception as error:  # the network may be the user's, and raise anything
            return error


def _evaluated(name: str, network: nn.Module, batch: Batch, data: Data, single: str, *, learns: bool) -> list[str]:
    """Evaluate a network and measure its cost on these samples; returns notes on what cannot be measured.

    A network that ``learns`` will be saved; for ``single``, see `_single`.

    Raises:
        LimbeckError: the network cannot be evaluated or saved.
    """
    notes = []
    try:
        predict(network, [batch], name=name)
    except LimbeckError:
        raise
    except Exception as error:  # the network may be the user's, and raise anything
        raise LimbeckError(f"the {name} cannot be evaluated on {len(batch.index)} samples: {_said(error)}") from error
    try:
        file_bytes(network)
    except Exception as error:  # as above, and the state may hold anything
        if learns:
            raise LimbeckError(f"the {name}'s state cannot be saved to a file: {_said(error)}") from error
        notes.append(f"the {name}'s state cannot be saved to a file, so its file size is not measured")
    try:
        predict(network, [replace(batch, inputs=batch.inputs[:1])], name=name)
    except Exception as error:  # as above
        if single:
            raise LimbeckError(
                f"the {name} cannot be evaluated on one sample, the size of the last batch of the {single} split: "
                f"{_said(error)}"
            ) from error
        if isinstance(_tried(network, batch.inputs[:1], learns=False), Exception):
            notes.append(f"the {name} does not run on one sample, so its latency is not measured ({_said(error)})")
    try:
        counted = macs(network, data.shape) is not None
    except Exception:  # as above
        counted = False
    return notes if counted else [*notes, f"the multiply-accumulates of the {name} cannot be counted"]


def _check_graphs(stage: Stage, networks: Networks, batch: Batch, engine: Engine, stored: frozenset[Tap]) -> None:
    """Raise CannotCompile if a frozen network that will be compiled cannot be traced as one graph."""
    from limbeck.train.compile import CannotCompile, reason, traced  # the compiler takes a second to import

    for name in [name for name in networks if name not in stage.networks]:
        taps = tuple(tap for tap in stage.reads if tap.source == name and tap not in stored)
        try:
            if taps:
                with evaluation_mode([networks[name]]), engine.autocast():
                    traced(engine.place(networks[name]), batch.inputs, taps)
        except LimbeckError:
            raise
        except Exception as error:  # the network may be the user's, and the compiler raises many kinds
            kind = closed_kind(networks[name])
            why = f"it is {kind}" if kind else reason(error)
            raise CannotCompile(
                f"compile is true, but the {name} cannot be compiled: {why}; set compile to false"
            ) from error


def _check_learner(name: str, network: nn.Module) -> None:
    check_learns(name, network)
    try:
        with evaluation_mode([network]):  # afterwards each part has the mode that it had
            network.train()
            network.eval()
    except Exception as error:  # the network may be the user's, and raise anything; those of torch.export do
        raise LimbeckError(f"the {name} cannot be put into train mode and eval mode: {_said(error)}") from error
    for layer, module in network.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise LimbeckError(
                f"the {name}'s {layer or 'network'} is quantised ({type(module).__name__}) and cannot learn: "
                "train the unquantised network, and quantise it afterwards"
            )


def _batch(workspace: Workspace) -> Batch:
    """A batch of the training's size, or of `MOST` bytes."""
    split = workspace.samples
    count = min(workspace.training.batch_size, len(split))
    floats = 4 * max(1, split.inputs[torch.arange(1)].numel())
    return workspace.spread(max(min(2, count), min(count, MOST // floats)))


def unprepared(stage: Stage) -> Stage:
    """The stage for one epoch, without `prepare` and `finish`, which may change other modules than the copies.

    The losses of a stage with `prepare` cannot be evaluated without it: the mean square of each tap replaces them.
    """
    short = replace(stage, epochs=1, finish=None, prepare=None)
    if stage.prepare is None:
        return short
    terms: Mapping[str, Term] = {name: Term(_squares, term.reads, 1.0) for name, term in stage.terms.items()}
    return replace(short, terms=terms)


def _squares(*reads: Tensor) -> Tensor:
    return torch.stack([read.float().square().mean() for read in reads]).sum()


def _single(data: Data) -> str:
    """The name of a split whose last batch has one sample, on which networks must run; empty if there is none."""
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    return next((name for name, split in splits.items() if 1 in batch_sizes(len(split), EVALUATION_BATCH)), "")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def as_they_were(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Restore parameters, buffers, gradients and modes after the block; random generators are not restored."""
    tensors = {id(one): one for network in networks for one in (*network.parameters(), *network.buffers())}.values()
    kept = [(one, one.detach().clone()) for one in tensors if not one.is_inference()]
    flags = [(one, one.requires_grad, one.grad) for one, _ in kept if one.is_leaf]
    try:
        with evaluation_mode(networks):
            yield
    finally:
        with torch.no_grad():
            for one, value in kept:
                one.copy_(value)
        for one, needed, gradient in flags:
            one.requires_grad_(needed)
            one.grad = gradient
