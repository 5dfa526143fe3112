"""Run every recorded case and write how many pass into the package, for the listing: ``python tests/record.py``."""

import json
import sys
from pathlib import Path

import torch

from recorded.comparing import FOLDER, counts

FILE = Path(__file__).parents[1] / "src" / "limbeck" / "methods" / "recorded.json"

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = counts()
    if not found:
        sys.exit(f"no recorded values in {FOLDER}: set LIMBECK_GOLDEN")
    lines = [f"  {json.dumps(method)}: {json.dumps(records)}" for method, records in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for method, records in found.items():
        print(method, *(f"{record} {met}/{cases}" for record, (met, cases) in records.items()))
