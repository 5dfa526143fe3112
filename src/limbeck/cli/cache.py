"""`limbeck cache build`, `verify` and `info`: the store of a teacher's outputs."""

from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli.recipe_options import Allow, Asked, DataRoot, Out, RecipeFile, Seed, Set, TrustCode, say_code
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.experiment.run import Experiment


def build(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Compute what the recipe's method reads of its teacher, for `limbeck run` with `cache: true`.

    A teacher that the recipe trains is trained first, in the run folder; `limbeck run --resume` continues from there.
    """
    asked = Asked(recipe, override, seed, out, data_root, allow, trust_code)
    with reporting(asked.again("cache build")):
        experiment = _experiment(asked)
        from limbeck.cli.progress import follow
        from limbeck.cli.terminal import console
        from limbeck.experiment.stores import build_stores
        from limbeck.train.threads import threads_for

        with threads_for(experiment.macs):
            follow(lambda track: build_stores(experiment, track), console(), experiment.work)


def verify(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Compare the store with the teacher on random rows; every file's hash is checked too."""
    with reporting():
        experiment = _experiment(Asked(recipe, override, seed, out, data_root, allow, trust_code))
        from limbeck.cli.progress import follow
        from limbeck.cli.terminal import console
        from limbeck.experiment.stores import compare_stores
        from limbeck.train.threads import threads_for

        with threads_for(experiment.macs):
            follow(lambda track: compare_stores(experiment), console(), {})


def info(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Show what the store holds, and of what."""
    with reporting():
        experiment = _experiment(Asked(recipe, override, seed, out, data_root, allow, trust_code))
        from limbeck.cli.tables import store_table
        from limbeck.cli.terminal import console
        from limbeck.experiment.stores import stores

        for folder in stores(experiment).values():
            console().print(store_table(folder))


def _experiment(asked: Asked) -> "Experiment":
    """The experiment of a recipe whose outputs are kept, on what its run folder may hold already."""
    checked = asked.checked("cache.use=true")
    from limbeck.experiment.run import Experiment
    from limbeck.train.allocator import keep_memory

    keep_memory()
    say_code(checked)
    out = asked.out or Path("runs") / checked.name
    return Experiment(checked, out, resume=True, trust_code=asked.trust_code)
