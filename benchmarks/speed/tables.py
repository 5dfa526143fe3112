"""A benchmark's figures as they are printed: a table for each workload, and sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.speed.measuring import DISTURBED


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """One table for each workload, one row for each variant."""
    for name, found in result["workloads"].items():
        title = f"{name}, batches of {found['batch_size']}, {_precision(found)}, {found['rounds']} rounds"
        table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
        for heading in ("", "images/s", "range", "x plain", "time / floor"):
            table.add_column(heading, no_wrap=True)
        for variant, speed in found["images_per_second"].items():
            if speed is None:
                table.add_row(variant, "-", "", "", "")
                continue
            least, most = found["range"][variant]
            table.add_row(
                variant,
                f"{speed:,.1f}",
                f"{least:,.1f} - {most:,.1f}",
                "1" if variant == "plain" else _spread(found["faster_than_plain"][variant]),
                _spread(found["over_floor"][variant]) if variant in found["over_floor"] else "",
            )
        yield table


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """What the tables do not say, and whether the gates hold; one line each."""
    for name, found in result["workloads"].items():
        cores = found["outside_cores"]
        others = "what other processes used is unknown" if cores is None else f"other processes used {cores:.2f} cores"
        yield (
            f"{name}: {others}; {found['repeated']} samples were repeated, {found['disturbed']} were kept although "
            f"other processes used more than {DISTURBED:g} cores"
        )
        if found["ends"]:
            yield f"{name}: plain and plain_tuned also run the layers above the hint, as people write it"
        if "compile_s" in found:
            yield f"{name}: compiling took {found['compile_s']:.1f} s, once"
        if "store_build_s" in found:
            seconds = found["store_build_s"]
            yield f"{name}: building the store of {found['samples']:,} samples took {seconds:.1f} s, once"
        yield from (f"{name}: {variant} is left out: {reason}" for variant, reason in found["skipped"].items())
    over = result["step_overhead"]
    yield (
        f"a step of a tiny network: plain {over['plain_us']:.0f} us, live {over['live_us']:.0f} us, "
        f"{over['median']:+.0f} us [{over['least']:+.0f} to {over['most']:+.0f}]"
    )
    for gate in result["gates"]:
        word = "holds" if gate["holds"] else "FAILS"
        doubt = "; other processes used the machine, so measure again" if gate["disturbed"] else ""
        yield f"{word}: {gate['what']}: {gate['value']:.3g}, at most {gate['limit']:g}{doubt}"


def _precision(found: Mapping[str, Any]) -> str:
    """Which loops run in which precision: only limbeck, the tuned loop and the floors may run in bfloat16."""
    reason = found["precision_reason"]
    if found["precision"] != "bf16":
        return f"32 bits ({reason})"
    return f"limbeck, plain_tuned and the floors in bfloat16 ({reason}), plain and torchdistill in 32 bits"


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} [{found['least']:.2f} - {found['most']:.2f}]"
