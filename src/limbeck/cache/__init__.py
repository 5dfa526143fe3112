"""A teacher's outputs, computed once and read back; or bought elsewhere, as a table."""

from limbeck.cache.blackbox import BlackBox, TableStore, rows_for
from limbeck.cache.building import LEFT_FREE, SHARD_BYTES, Estimate, Progress, Views, build, estimate, free_bytes
from limbeck.cache.checking import Info, Verification, info, verify
from limbeck.cache.encoding import parts_of
from limbeck.cache.fingerprint import Dtype, Fingerprint, Format, network_digest, tensors_digest
from limbeck.cache.folder import begun
from limbeck.cache.reading import Store
from limbeck.cache.table import Kind, Table, read_table

__all__ = [
    "LEFT_FREE",
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
    "free_bytes",
    "info",
    "network_digest",
    "parts_of",
    "read_table",
    "rows_for",
    "tensors_digest",
    "verify",
]
