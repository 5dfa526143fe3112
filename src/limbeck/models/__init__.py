"""Networks: a zoo with the published sizes, networks by name or file, ensembles, and weights on disk."""

from limbeck.models.building import MODELS, build, options
from limbeck.models.describe import Layer, layers
from limbeck.models.ensemble import Ensemble
from limbeck.models.files import load_network, load_weights, read_spec, save_network
from limbeck.models.spec import GIVEN, NetworkSpec

__all__ = [
    "GIVEN",
    "MODELS",
    "Ensemble",
    "Layer",
    "NetworkSpec",
    "build",
    "layers",
    "load_network",
    "load_weights",
    "options",
    "read_spec",
    "save_network",
]
