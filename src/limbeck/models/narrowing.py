"""Narrow the layers of a built network to the shapes of a pruned one."""

from collections.abc import Mapping

from torch import Tensor, nn

from limbeck.core import LimbeckError


def narrow(network: nn.Module, shapes: Mapping[str, Tensor]) -> None:
    """Cut the parameters and buffers of a network, in place, to the shapes of those with the same names.

    The first channels are kept. Linear layers, convolutions, BatchNorm and LayerNorm get the new numbers of channels;
    a depthwise convolution keeps one group for each channel. Names that only one side has are ignored.

    Args:
        network: the network as it is built.
        shapes: the state dict of the pruned network; its values are not read.

    Raises:
        LimbeckError: a tensor has other dimensions than in the network, is larger, or is empty.
    """
    made: dict[Tensor, Tensor] = {}  # a parameter that two layers share stays shared
    for prefix, module in network.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            path = f"{prefix}.{name}".lstrip(".")
            shape = shapes[path].shape if path in shapes else tensor.shape
            if shape == tensor.shape:
                continue
            whole = tuple(tensor.shape)
            if len(shape) != len(whole) or not all(0 < few <= most for few, most in zip(shape, whole, strict=True)):
                raise LimbeckError(f"{path} has the shape {tuple(shape)}, which cannot be cut from {whole}")
            if tensor not in made:
                cut = tensor.detach()[tuple(map(slice, shape))].clone()
                made[tensor] = nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut
            setattr(module, name, made[tensor])
        if own:
            _count_channels(module)


def _count_channels(module: nn.Module) -> None:
    """Set the numbers of channels that a layer states to those of its weights."""
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            if module.groups == module.out_channels:
                module.groups = len(module.weight)
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            module.num_features = len(module.running_mean if module.weight is None else module.weight)
        case nn.LayerNorm():
            module.normalized_shape = tuple(module.weight.shape)
