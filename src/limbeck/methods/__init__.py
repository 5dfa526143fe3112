"""The distillation methods: one file each, its losses first, then the function that returns stages."""

from collections.abc import Mapping
from typing import Any

from limbeck.core import Method
from limbeck.methods.ab import ab
from limbeck.methods.alone import alone
from limbeck.methods.assistants import assistants
from limbeck.methods.at import PRESETS as AT_PRESETS
from limbeck.methods.at import at
from limbeck.methods.born_again import born_again
from limbeck.methods.cat_kd import cat_kd
from limbeck.methods.cc import PRESETS as CC_PRESETS
from limbeck.methods.cc import cc
from limbeck.methods.class_distance import class_distance
from limbeck.methods.crd import crd
from limbeck.methods.crd_in_batch import crd_in_batch
from limbeck.methods.dist import dist
from limbeck.methods.dkd import dkd
from limbeck.methods.fine_tune import fine_tune
from limbeck.methods.fitnets import fitnets
from limbeck.methods.fitnets_one_stage import fitnets_one_stage
from limbeck.methods.fsp import fsp
from limbeck.methods.ft import ft
from limbeck.methods.kd import PRESETS as KD_PRESETS
from limbeck.methods.kd import kd
from limbeck.methods.logits import logits
from limbeck.methods.mimic import mimic
from limbeck.methods.mlkd import mlkd
from limbeck.methods.mutual import mutual
from limbeck.methods.nst import PRESETS as NST_PRESETS
from limbeck.methods.nst import nst
from limbeck.methods.ofd import ofd
from limbeck.methods.pkt import PRESETS as PKT_PRESETS
from limbeck.methods.pkt import pkt
from limbeck.methods.reviewkd import reviewkd
from limbeck.methods.rkd import PRESETS as RKD_PRESETS
from limbeck.methods.rkd import rkd
from limbeck.methods.semckd import semckd
from limbeck.methods.simkd import simkd
from limbeck.methods.sp import sp
from limbeck.methods.srrl import srrl
from limbeck.methods.standardised import kd_standardised
from limbeck.methods.vid import vid
from limbeck.methods.wsld import wsld

METHODS: Mapping[str, Method] = {
    "alone": alone,
    "kd": kd,
    "fitnets": fitnets,
    "fsp": fsp,
    "class_distance": class_distance,
    "srrl": srrl,
    "logits": logits,
    "mimic": mimic,
    "fitnets_one_stage": fitnets_one_stage,
    "at": at,
    "sp": sp,
    "nst": nst,
    "vid": vid,
    "rkd": rkd,
    "pkt": pkt,
    "cc": cc,
    "crd": crd,
    "crd_in_batch": crd_in_batch,
    "dkd": dkd,
    "kd_standardised": kd_standardised,
    "dist": dist,
    "mlkd": mlkd,
    "cat_kd": cat_kd,
    "wsld": wsld,
    "ab": ab,
    "ft": ft,
    "ofd": ofd,
    "reviewkd": reviewkd,
    "semckd": semckd,
    "simkd": simkd,
    "mutual": mutual,
    "born_again": born_again,
    "assistants": assistants,
    "fine_tune": fine_tune,
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "kd": KD_PRESETS,
    "at": AT_PRESETS,
    "cc": CC_PRESETS,
    "nst": NST_PRESETS,
    "pkt": PKT_PRESETS,
    "rkd": RKD_PRESETS,
}
"""Settings by name, for the methods that have published ones."""

TEACHERLESS = ("alone", "fine_tune", "mutual")
"""The methods that need no teacher."""
