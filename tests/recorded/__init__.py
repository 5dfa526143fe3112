"""How each recorded method is called with our functions; `tests/test_golden.py` compares the values."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

Case = Mapping[str, Tensor]
"""The stored tensors of a case by key: inputs, ``param/...`` and ``teacher_param/...``."""

Recorded = Callable[[Case, Mapping[str, Any]], Tensor]
"""``(inputs, hyper-parameters) -> loss``."""


def with_parameters(module: nn.Module, parameters: Mapping[str, Tensor], *args: Tensor) -> Tensor:
    """The module in training mode, in 64 bits, called with these tensors as its parameters and buffers."""
    return functional_call(module.double().train(), dict(parameters), args)


def numbered(case: Case, prefix: str) -> list[Tensor]:
    """``prefix0``, ``prefix1``, ... in order."""
    count = sum(key.startswith(prefix) and key.removeprefix(prefix).isdecimal() for key in case)
    return [case[f"{prefix}{index}"] for index in range(count)]


METHOD_OF: Mapping[str, str] = {
    "hinton_kd": "kd",
    "hinton_kd_with_ce": "kd",
    "logits_mse": "logits",
    "fitnet_hint": "fitnets",
    "at": "at",
    "at_paper": "at",
    "fsp_repdistiller": "fsp",
    "fsp_torchdistill": "fsp",
    "fsp_paper": "fsp",
    "rkd_distance": "rkd",
    "rkd_angle": "rkd",
    "rkd": "rkd",
    "srrl": "srrl",
    "srrl_vector": "srrl",
    "class_distance": "class_distance",
    "crd": "crd",
    "sp": "sp",
    "cc_repdistiller": "cc",
    "cc_taylor": "cc",
    "pkt": "pkt",
    "nst": "nst",
    "vid": "vid",
    "ab": "ab",
    "ft": "ft",
    "ft_paraphraser": "ft",
    "ft_repdistiller": "ft",
    "ofd": "ofd",
    "reviewkd_hcl": "reviewkd",
    "reviewkd": "reviewkd",
    "dkd": "dkd",
    "kd_logit_standardization": "kd_standardised",
    "simkd": "simkd",
    "dist": "dist",
    "semckd": "semckd",
    "mlkd_terms": "mlkd",
    "mlkd_full": "mlkd",
    "cat_kd": "cat_kd",
    "wsld": "wsld",
    "wsld_mmrazor": "wsld",
}
"""From a record to the method of `limbeck.methods` that it is of."""
