"""Whether a training state fits the training that is to resume from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Networks, Stage
from limbeck.train.engine import Engine
from limbeck.train.freeze import frozen, frozen_modules
from limbeck.train.loop import Step
from limbeck.train.regime import PLAIN, Regime

_KEYS = {"stage", "epoch", "modules", "optimizer", "generators"}


def check_state(
    state: Mapping[str, Any], stages: Sequence[Stage], networks: Networks, engine: Engine, regime: Regime = PLAIN
) -> None:
    """Refuse a state from which `limbeck.train.loop.run` cannot resume exactly.

    The state's modules must be named, shaped and typed as these are, their parameters finite, its optimizer that of
    the stage it is in, with the same options but for the learning rate, and its generators those of the engine. It is
    from `limbeck.train.loop.Epoch.state`, or anything else.

    Raises:
        LimbeckError: the state does not fit; the message says what differs.
    """
    if not isinstance(state, Mapping) or not state.keys() >= _KEYS:
        raise LimbeckError("it does not contain the state of a training")
    position, epoch = state["stage"], state["epoch"]
    if type(position) is not int or not 0 <= position < len(stages):
        raise LimbeckError(f"its stage is {position!r}: allowed are 0 to {len(stages) - 1}")
    stage, selects = stages[position], regime.selects and position + 1 == len(stages)
    if state.keys() != _KEYS | ({"average"} if regime.averages(stage) else set()) | ({"best"} if selects else set()):
        raise LimbeckError("it does not contain the state of a training")
    if type(epoch) is not int or not 1 <= epoch <= stage.epochs:
        raise LimbeckError(f"its epoch is {epoch!r}: allowed are 1 to {stage.epochs} in stage {stage.name!r}")
    steps = nn.ModuleList(Step(one, networks) for one in stages)
    _check_weights("its modules", state["modules"], steps)
    _compare("its generators", state["generators"], engine.generators())
    try:
        torch.Generator().set_state(state["generators"]["cpu"])
    except RuntimeError as error:
        raise LimbeckError("its generators are not states of a generator") from error
    with frozen(frozen_modules(stage, networks)):
        learning = [parameter for parameter in steps[position].parameters() if parameter.requires_grad]
    _check_optimizer(state["optimizer"], stage, learning)
    if regime.averages(stage):
        _check_average(state["average"], learning)
    if selects:
        _check_best(state["best"], steps[position] if regime.keep == "best" else nn.Module(), epoch)


def _check_average(found: Any, learning: Sequence[nn.Parameter]) -> None:
    _compare("its average", found, {"updates": 0, "weights": {}})
    if found["updates"] < 0:
        raise LimbeckError(f"its average has {found['updates']} updates: it must be at least 0")
    _check_weights("its average", found["weights"], nn.ParameterList(learning))


def _check_best(found: Any, kept: nn.Module, epochs: int) -> None:
    _compare("its best epoch", found, {"epoch": 0, "score": 0.0, "weights": {}})
    if not 1 <= found["epoch"] <= epochs:
        raise LimbeckError(f"its best epoch is {found['epoch']}: allowed are 1 to {epochs}")
    _check_weights("its best epoch", found["weights"], kept)


def _check_weights(what: str, found: Any, module: nn.Module) -> None:
    """Refuse other tensors than those of the module, and parameters that are not finite."""
    _compare(what, found, module.state_dict())
    for name, _ in module.named_parameters():
        _check_finite(f"{what}: {name}", found[name])


def _check_optimizer(found: Any, stage: Stage, learning: Sequence[nn.Parameter]) -> None:
    expected = _stepped(stage, learning)
    if not isinstance(found, Mapping) or found.keys() != {"state", "param_groups"}:
        raise LimbeckError("its optimizer does not hold the state of an optimizer")
    groups = found["param_groups"]
    if not isinstance(groups, list) or [*map(_options, groups)] != [*map(_options, expected["param_groups"])]:
        raise LimbeckError(f"its optimizer differs from that of stage {stage.name!r}, or has other options")
    held = found["state"]
    if not isinstance(held, Mapping) or not held.keys() <= expected["state"].keys():
        raise LimbeckError("its optimizer holds states of parameters that do not exist")
    for place, values in held.items():  # a parameter without a gradient has none
        _compare(f"its optimizer's state {place}", values, expected["state"][place])
        for name, value in values.items():
            _check_finite(f"its optimizer's {name} {place}", value)


def _stepped(stage: Stage, learning: Sequence[nn.Parameter]) -> dict[str, Any]:
    """The state of the stage's optimizer after a step on parameters like these; before a step it is empty."""
    like = {parameter: nn.Parameter(torch.zeros_like(parameter)) for parameter in learning}
    optimizer = stage.optimizer(learning)  # the learning rates may depend on the layer
    for group in optimizer.param_groups:
        group["params"] = [like[parameter] for parameter in group["params"]]
    for parameter in like.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state: dict[str, Any] = optimizer.state_dict()
    return state


def _options(group: Any) -> Any:
    """The options of an optimizer, without the learning rate, which the training sets in every step."""
    return {key: value for key, value in group.items() if key != "lr"} if isinstance(group, Mapping) else None


def _compare(what: str, found: Any, expected: Mapping[str, Any]) -> None:
    """Refuse other names, shapes or types of tensors."""
    if not isinstance(found, Mapping):
        raise LimbeckError(f"{what} are missing")
    for name in [*expected, *found]:
        if name not in found or name not in expected:
            raise LimbeckError(f"{what} {'lack' if name in expected else 'hold'} {name!r}")
        one, other = _form(found[name]), _form(expected[name])
        if one != other:
            raise LimbeckError(f"{what}: {name!r} is {one}, expected {other}")


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def _check_finite(what: str, value: Any) -> None:
    if isinstance(value, Tensor) and not value.isfinite().all():
        raise LimbeckError(f"{what} holds a NaN or an infinite number")
