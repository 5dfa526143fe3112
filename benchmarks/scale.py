"""The tables of docs/scale.md: bytes, hours and money for three sizes of data, from named assumptions.

    python -m benchmarks.scale            # prints the tables
    python -m benchmarks.scale --write    # writes them into docs/scale.md

Pure arithmetic: the bytes of a stored row are those of `limbeck.cache.encoding.parts_of`, everything else is in
`ASSUMED`, `SIZES` and `FORMS`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from limbeck.cache.building import SHARD_BYTES, SHARD_ROWS
from limbeck.cache.encoding import parts_of
from limbeck.cache.fingerprint import Format

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"

ASSUMED = {
    "student": 16_621 / 8,  # images/s of a GPU that trains
    "student alone": 2_470.0,  # images/s of one GPU that trains by itself
    "teacher / student": 271.58 / 1_218.01,  # of the rates of one GPU
    "dollars a GPU hour": 2.0,
    "dollars a TB month": 23.0,
    "bytes of an image": 110_000,
    "bytes of memory of a sample": 130 + 40,  # name and label; order and views of an epoch
}


class Size(NamedTuple):
    """A set of images, and how long a student is trained on it."""

    images: int
    classes: int
    epochs: int


SIZES = {
    "ImageNet-1k": Size(1_281_167, 1_000, 300),
    "ImageNet-21k": Size(14_197_122, 21_841, 90),
    "a billion images": Size(1_000_000_000, 21_841, 10),
}

FORMS = {
    "all logits, float16": (Format("float16"), None),
    "`top_k: 10`, float16": (Format("float16", 10), None),
    "`top_k: 100`, float16": (Format("float16", 100), None),
    "the feature, 1,024 numbers, float16": (Format("float16"), (1_024,)),
    "the map, 256 x 1,024 numbers, float16": (Format("float16"), (256, 1_024)),
}
"""What is stored of each view: its format, and its shape (None: the classes)."""


class Published(NamedTuple):
    """A store that others published."""

    data: str  # in `SIZES`
    views: int
    top_k: int
    size: str  # as published


PUBLISHED = {
    "TinyViT, 300 epochs": Published("ImageNet-1k", 300, 10, "16 GB"),
    "TinyViT, 90 epochs": Published("ImageNet-21k", 90, 100, "481 GB"),
    "dataset reinforcement": Published("ImageNet-1k", 400, 10, "46 GB"),
    "FKD": Published("ImageNet-1k", 500, 5, "36 GB"),
}


def row_bytes(name: str, size: Size) -> int:
    """The bytes of a view of an image in limbeck's store."""
    form, shape = FORMS[name]
    return sum(part.row_bytes for part in parts_of(form, shape or (size.classes,)))


def teacher_rate() -> float:
    """Images a second of a GPU that runs the teacher."""
    return ASSUMED["student alone"] * ASSUMED["teacher / student"]


def live_rate() -> float:
    """Images a second of a GPU that runs the teacher and trains the student at every step."""
    return 1 / (1 / ASSUMED["student"] + 1 / teacher_rate())


def tables() -> dict[str, str]:
    """The tables in Markdown by their names."""
    return {"rates": _rates(), "bytes": _bytes(), "hours": _hours(), "memory": _memory(), "published": _published()}


def _rates() -> str:
    rows = [
        ("the student trains, the teacher's outputs are read", ASSUMED["student"]),
        ("the teacher runs, a view is stored", teacher_rate()),
        ("the teacher runs and the student trains at every step", live_rate()),
    ]
    return _table(["what a GPU does", "images/s"], [[text, f"{rate:,.0f}"] for text, rate in rows])


def _bytes() -> str:
    rows = []
    for name in FORMS:
        for title, size in SIZES.items():
            one = row_bytes(name, size)
            views = one * size.images * size.epochs
            month = views / 1e12 * ASSUMED["dollars a TB month"]
            files = -(-size.images // min(SHARD_ROWS, max(1, SHARD_BYTES // one))) * size.epochs
            sizes = [f"{one:,}", _of_bytes(one * size.images), _of_bytes(views)]
            rows.append([name, title, *sizes, f"{files:,}", f"{month:,.0f}"])
    head = ["what is stored", "data", "bytes a view", "one view of each image", "a view an epoch", "files", "$ a month"]
    return _table(head, rows)


def _hours() -> str:
    rows = []
    for title, size in SIZES.items():
        seen = size.images * size.epochs
        for text, count, rate in (
            ("one view of each image through the teacher", size.images, teacher_rate()),
            (f"{size.epochs} views through the teacher", seen, teacher_rate()),
            (f"student, {size.epochs} epochs, from the store", seen, ASSUMED["student"]),
            (f"student, {size.epochs} epochs, the teacher at every step", seen, live_rate()),
        ):
            hours = count / rate / 3600
            rows.append(
                [
                    title,
                    text,
                    *(_of_hours(hours / gpus) for gpus in (8, 64)),
                    f"{hours * ASSUMED['dollars a GPU hour']:,.0f}",
                ]
            )
    return _table(["data", "work", "8 GPUs", "64 GPUs", "$"], rows)


def _memory() -> str:
    rows = []
    for title, size in SIZES.items():
        held = size.images * ASSUMED["bytes of memory of a sample"]
        read = 8 * ASSUMED["student"] * ASSUMED["bytes of an image"]
        rows.append(
            [
                title,
                _of_bytes(size.images * ASSUMED["bytes of an image"]),
                _of_bytes(held),
                _of_bytes(8 * held),
                f"{_of_bytes(read)}/s",
            ]
        )
    head = ["data", "images on disk", "memory of a process", "of 8 processes on a machine", "reading, 8 GPUs"]
    return _table(head, rows)


def _published() -> str:
    rows = []
    for name, (data, views, top_k, size) in PUBLISHED.items():
        one = sum(part.row_bytes for part in parts_of(Format("float16", top_k), (SIZES[data].classes,)))
        rows.append([name, data, f"{views}", f"{top_k}", size, f"{one}", _of_bytes(one * views * SIZES[data].images)])
    head = ["store", "data", "views", "classes kept", "published", "limbeck, bytes a view", "limbeck"]
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _of_bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"


def _of_hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.3g} days"
    return f"{hours:.2g} h" if hours >= 1 else f"{hours * 60:.2g} min"


def written(text: str, tables: Mapping[str, str]) -> str:
    """The text of a page with the tables between its marks, ``<!-- table: name -->`` and ``<!-- end -->``."""
    for name, table in tables.items():
        mark = f"<!-- table: {name} -->\n\n"
        before, _, rest = text.partition(mark)
        text = before + mark + table + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    return text


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    for name, table in tables().items():
        print(f"{name}\n\n{table}")


if __name__ == "__main__":
    main()
