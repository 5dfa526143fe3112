"""Random recipes, damages and kills, more of them than the tests have time for.

Command:  python benchmarks/fuzz.py [recipes|damages|kills ...] --n 1000 --seed 0

Prints one row a kind: how many there were and what came of them. What is not as it should be is told on the way.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

KINDS = ("recipes", "damages", "kills")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default", metavar="KIND")
    parser.add_argument("--n", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    unknown = set(asked.kinds) - set(KINDS)
    if unknown:
        parser.error(f"there is no kind {min(unknown)}: allowed are {', '.join(KINDS)}")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    for kind in asked.kinds or KINDS:
        start = time.monotonic()
        counts = importlib.import_module(f"fuzz.{kind}").run(asked.n, asked.seed)
        took = time.monotonic() - start
        print(f"{kind:8} " + "  ".join(f"{name} {count:,}" for name, count in counts.items()) + f"  ({took:,.0f} s)")


if __name__ == "__main__":
    main()
