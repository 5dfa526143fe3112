"""Networks: a zoo with the published sizes, networks by name or file, ensembles, and weights on disk."""

from limbeck.connectors import Maxout
from limbeck.models.building import MODELS, build, options
from limbeck.models.cifar_resnet import cifar_resnet
from limbeck.models.convnet import convnet_big, convnet_small
from limbeck.models.describe import Layer, layers
from limbeck.models.ensemble import Ensemble
from limbeck.models.files import load_network, load_weights, read_spec, save_network
from limbeck.models.fitnets import fitnet_depth, fitnet_mnist
from limbeck.models.maxout import MaxNormConv2d
from limbeck.models.maxout_teachers import maxout_cifar, maxout_mnist, maxout_svhn
from limbeck.models.mlp import MaxNormLinear, mlp
from limbeck.models.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v2_half
from limbeck.models.rebuilding import restore_structure
from limbeck.models.shufflenet import shufflenet_v1, shufflenet_v2
from limbeck.models.spec import GIVEN, NetworkSpec
from limbeck.models.vgg import vgg8, vgg13
from limbeck.models.wide_resnet import wide_resnet

__all__ = [
    "GIVEN",
    "MODELS",
    "Ensemble",
    "Layer",
    "MaxNormConv2d",
    "MaxNormLinear",
    "Maxout",
    "NetworkSpec",
    "build",
    "cifar_resnet",
    "convnet_big",
    "convnet_small",
    "fitnet_depth",
    "fitnet_mnist",
    "layers",
    "load_network",
    "load_weights",
    "maxout_cifar",
    "maxout_mnist",
    "maxout_svhn",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v2_half",
    "options",
    "read_spec",
    "restore_structure",
    "save_network",
    "shufflenet_v1",
    "shufflenet_v2",
    "vgg8",
    "vgg13",
    "wide_resnet",
]
