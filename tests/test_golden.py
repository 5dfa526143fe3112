"""The recorded values of the authors' code, one test a case.

The folder is LIMBECK_GOLDEN, by default ../shared/golden/open beside the repository; any folder of the same layout
passes: an index.json and one .npz a method.
"""

from typing import Any

import pytest

from recorded.comparing import FOLDER, OURS, Value, compare, recorded


def cases() -> list[Any]:
    found = list(recorded())
    if not found:
        reason = f"no recorded values in {FOLDER}: set LIMBECK_GOLDEN"
        return [pytest.param(Value("", {}), marks=pytest.mark.skip(reason=reason), id="none")]
    absent = [
        pytest.param(
            Value(record, {}), marks=pytest.mark.skip(reason=f"{FOLDER} has no record of {record}"), id=f"{record}-none"
        )
        for record in OURS
        if record not in {value.record for value in found}
    ]
    return absent + [pytest.param(value, id=str(value)) for value in found]


@pytest.mark.parametrize("value", cases())
def test_golden_value_and_every_gradient(value):
    compare(value)
