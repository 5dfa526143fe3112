"""The distillation methods. Each file contains the losses, the function that returns the stages, and `ABOUT`."""

from collections.abc import Mapping
from typing import Any

from limbeck.core import Method
from limbeck.methods import (
    ab,
    alone,
    assistants,
    at,
    born_again,
    cat_kd,
    cc,
    class_distance,
    crd,
    crd_in_batch,
    dist,
    dkd,
    fine_tune,
    fitnets,
    fitnets_one_stage,
    fsp,
    ft,
    kd,
    kd_plus_plus,
    logits,
    mimic,
    mlkd,
    mutual,
    nkd,
    nst,
    ofa,
    ofd,
    phi_s,
    pkt,
    reviewkd,
    rkd,
    semckd,
    simkd,
    sp,
    specialists,
    srrl,
    standardised,
    vid,
    vkd,
    wkd_f,
    wsld,
    wttm,
)
from limbeck.methods.about import About

ABOUT: Mapping[str, About] = {
    "alone": alone.ABOUT,
    "kd": kd.ABOUT,
    "fitnets": fitnets.ABOUT,
    "fsp": fsp.ABOUT,
    "class_distance": class_distance.ABOUT,
    "srrl": srrl.ABOUT,
    "logits": logits.ABOUT,
    "mimic": mimic.ABOUT,
    "fitnets_one_stage": fitnets_one_stage.ABOUT,
    "at": at.ABOUT,
    "sp": sp.ABOUT,
    "nst": nst.ABOUT,
    "vid": vid.ABOUT,
    "rkd": rkd.ABOUT,
    "pkt": pkt.ABOUT,
    "cc": cc.ABOUT,
    "crd": crd.ABOUT,
    "crd_in_batch": crd_in_batch.ABOUT,
    "dkd": dkd.ABOUT,
    "kd_standardised": standardised.ABOUT,
    "dist": dist.ABOUT,
    "mlkd": mlkd.ABOUT,
    "cat_kd": cat_kd.ABOUT,
    "wsld": wsld.ABOUT,
    "nkd": nkd.ABOUT,
    "wttm": wttm.ABOUT,
    "kd_plus_plus": kd_plus_plus.ABOUT,
    "vkd": vkd.ABOUT,
    "wkd_f": wkd_f.ABOUT,
    "ofa": ofa.ABOUT,
    "phi_s": phi_s.ABOUT,
    "ab": ab.ABOUT,
    "ft": ft.ABOUT,
    "ofd": ofd.ABOUT,
    "reviewkd": reviewkd.ABOUT,
    "semckd": semckd.ABOUT,
    "simkd": simkd.ABOUT,
    "mutual": mutual.ABOUT,
    "born_again": born_again.ABOUT,
    "assistants": assistants.ABOUT,
    "specialists": specialists.ABOUT,
    "fine_tune": fine_tune.ABOUT,
}
"""The methods by name, in the order in which they are listed."""

METHODS: Mapping[str, Method] = {name: about.function for name, about in ABOUT.items()}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    name: about.presets for name, about in ABOUT.items() if about.presets
}
"""Settings by name, for the methods that have published ones."""

TEACHERLESS = tuple(name for name, about in ABOUT.items() if not about.needs_teacher)
"""The methods that need no teacher."""
