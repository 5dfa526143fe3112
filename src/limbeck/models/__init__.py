"""Networks: a small zoo of exact published sizes, any other by name or file, ensembles, and weights on disk."""

from limbeck.models.building import MODELS, build, options
from limbeck.models.cifar_resnet import cifar_resnet
from limbeck.models.convnet import convnet_big, convnet_small
from limbeck.models.describe import Layer, layers
from limbeck.models.ensemble import Ensemble
from limbeck.models.files import NetworkSpec, load_network, load_weights, read_spec, save_network
from limbeck.models.mlp import MaxNormLinear, mlp
from limbeck.models.wide_resnet import wide_resnet

__all__ = [
    "MODELS",
    "Ensemble",
    "Layer",
    "MaxNormLinear",
    "NetworkSpec",
    "build",
    "cifar_resnet",
    "convnet_big",
    "convnet_small",
    "layers",
    "load_network",
    "load_weights",
    "mlp",
    "options",
    "read_spec",
    "save_network",
    "wide_resnet",
]
