"""A teacher's outputs, computed once and read back; or bought elsewhere, as a table."""

from limbeck.store.blackbox import BlackBox, TableStore, rows_for
from limbeck.store.building import SHARD_BYTES, Estimate, Progress, Views, build, estimate
from limbeck.store.checking import Info, Verification, info, verify
from limbeck.store.fingerprint import Dtype, Fingerprint, Format, network_digest, tensors_digest
from limbeck.store.folder import begun
from limbeck.store.reading import Store
from limbeck.store.table import Kind, Table, read_table

__all__ = [
    "SHARD_BYTES",
    "BlackBox",
    "Dtype",
    "Estimate",
    "Fingerprint",
    "Format",
    "Info",
    "Kind",
    "Progress",
    "Store",
    "Table",
    "TableStore",
    "Verification",
    "Views",
    "begun",
    "build",
    "estimate",
    "info",
    "network_digest",
    "read_table",
    "rows_for",
    "tensors_digest",
    "verify",
]
