"""`limbeck cache build`, `verify` and `info`: the store of a teacher's outputs."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from limbeck.cli.recipe_options import Allow, Asked, DataRoot, Out, RecipeFile, Seed, Set, TrustCode, say_code
from limbeck.cli.reporting import reporting
from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.cache.manifest import Info
    from limbeck.experiment.events import Event, Job, Track
    from limbeck.experiment.run import Experiment
    from limbeck.recipe.blocks import Recipe


def build(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
    shard: Annotated[
        str | None, typer.Option(help="Build part i of N, such as 0/8, beside other workers; i is from 0 to N - 1.")
    ] = None,
    ray: Annotated[int | None, typer.Option(min=1, help="Build this many shards, as tasks on a Ray cluster.")] = None,
) -> None:
    """Compute and store the teacher's outputs that the recipe's method reads, for `limbeck run` with `cache: true`.

    A teacher that the recipe trains is trained first, in the run folder; `limbeck run --resume` continues from there.
    With --shard or --ray, several workers build the store: train the teacher before.
    """
    asked = Asked(recipe, override, seed, out, data_root, allow, trust_code)
    divided = f" --ray {ray}" if ray else f" --shard {shlex.quote(shard)}" if shard else ""
    with reporting(asked.again("cache build") + divided):
        part = _part(shard)
        checked = asked.checked("cache.use=true")
        if checked.teacher and checked.teacher.train and (checked.train.per_device or checked.teacher.train.per_device):
            raise LimbeckError(
                "train.per_device: cache build does not know with how many processes the run trains: write the "
                "batch_size of all of them, without per_device"
            )
        if ray is not None:
            _over_ray(asked, checked, shard, ray)
            return
        experiment = _experiment(asked)
        from limbeck.experiment.stores import build_stores

        _follow(experiment, lambda track: build_stores(experiment, track, part), experiment.work)


def verify(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Compare every file of the store with its checksum, and random rows with the teacher."""
    with reporting():
        experiment = _experiment(Asked(recipe, override, seed, out, data_root, allow, trust_code))
        from limbeck.experiment.stores import compare_stores

        _follow(experiment, lambda track: compare_stores(experiment), {})


def info(
    recipe: RecipeFile, override: Set = None, seed: Seed = None, out: Out = None, data_root: DataRoot = None
) -> None:
    """Show what the store holds and what it was built from. No data and no network are loaded."""
    asked = Asked(recipe, override, seed, out, data_root, allow=None, trust_code=False)
    with reporting():
        checked = asked.checked("cache.use=true")
        from limbeck.cache.manifest import begun
        from limbeck.cache.manifest import info as store_info
        from limbeck.cli.terminal import console
        from limbeck.experiment.store_folders import store_folders

        folders = store_folders(checked, _run(asked, checked)).values()
        there = [folder for folder in folders if begun(folder) is not None]
        for folder in there:
            console().print(_table(folder, store_info(folder)))
        missing = [str(folder) for folder in folders if folder not in there]
        if missing:
            command = asked.again("cache build")
            raise LimbeckError(f"there is no store yet in {', '.join(missing)}. To build it: {command}")


def _table(folder: Path, found: "Info") -> Table:
    """What a store holds, and what it was built from."""
    known = found.manifest["fingerprint"]
    views, samples = known["views"], found.manifest["rows"]
    rows = {
        "folder": str(folder),
        "state": "finished" if found.finished else f"not finished: {found.files} of {found.total} files",
        "size": f"{decimal(found.bytes)} in {found.files} file{'s' if found.files != 1 else ''}",
        "samples": f"{samples:,}, {views} view{'s' if views > 1 else ''} of seed {known['seed']}",
        **{
            f"tap {tap}": f"{' x '.join(map(str, found.manifest['shapes'][tap]))}, {dtype}"
            + (f", the {top_k} largest" if top_k else "")
            for tap, (*_, dtype, top_k) in known["taps"].items()
        },
        "computed in": "bfloat16" if known["precision"] == "bf16" else "32 bits",
        "teacher's weights": known["weights"],
        "teacher's structure": known["structure"],
        "data": known["data"],
        "transform": json.dumps(known["transform"]),
        "versions": ", ".join(f"{name} {number}" for name, number in known["versions"].items()),
    }
    table = Table("", "", show_header=False)
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _part(shard: str | None) -> tuple[int, int]:
    """The number of a shard and of all shards."""
    if shard is None:
        return 0, 1
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise LimbeckError(f"--shard is {shard!r}: allowed are i/N with i from 0 to N - 1, such as 0/8")
    return int(number), int(count)


def _over_ray(asked: Asked, checked: "Recipe", shard: str | None, count: int) -> None:
    """Build the store on a Ray cluster, and say which shard is finished."""
    if shard is not None:
        raise LimbeckError("--ray builds all shards: remove --shard")
    say_code(checked.model_dump())
    from limbeck.cli.over_ray import built
    from limbeck.cli.terminal import console

    command = shlex.split(asked.again("cache build"))
    for done, number in enumerate(built(command, count, gpus=checked.device != "cpu"), start=1):
        console().print(f"shard {number}/{count} is built: {done} of {count}")


def _run(asked: Asked, checked: "Recipe") -> Path:
    return asked.out or Path("runs") / checked.name


def _experiment(asked: Asked) -> "Experiment":
    """The experiment of a recipe whose teacher's outputs are stored; it continues what its run folder holds."""
    checked = asked.checked("cache.use=true")
    from limbeck.cli.terminal import console, loading

    with loading():
        from limbeck.cli.progress import reading
        from limbeck.experiment.run import Experiment
        from limbeck.train.allocator import keep_memory

    keep_memory()
    say_code(checked.model_dump())
    with reading(console()) as progress:
        return Experiment(checked, _run(asked, checked), resume=True, trust_code=asked.trust_code, progress=progress)


def _follow(
    experiment: "Experiment", start: Callable[["Track"], Iterator["Event"]], work: Mapping["Job", float]
) -> None:
    """Show the events of a command."""
    from limbeck.cli.progress import follow
    from limbeck.cli.terminal import console
    from limbeck.train.threads import threads_for

    with threads_for(experiment.macs):
        follow(start, console(), work)
