"""What is kept of a teacher, and when."""

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from limbeck.cache.building import LEFT_FREE
from limbeck.cache.fingerprint import refuse_difference
from limbeck.core import TARGETS, LimbeckError, Stage, Tap, Term, from_student, from_teacher
from limbeck.data import Augment, arrays, load
from limbeck.data.soft_targets import SoftTargets
from limbeck.experiment.caching import (
    MOST,
    cached,
    decide,
    fingerprint,
    keep,
    soft_label_table,
    teacher_taps,
)
from limbeck.experiment.workspace import Training, training_batches
from limbeck.optimizers import sgd
from limbeck.recipe.blocks import CacheBlock, TeacherBlock
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
LOGITS = frozenset({from_teacher()})


def far(student, *others):
    return student.sum() * 0


def stages(*reads, epochs=3, learns=("student",)):
    terms = {"both": Term(far, (from_student(), *reads))}
    return (Stage("one", terms, epochs, sgd(lr=0.1), constant(), learns),)


def training(**changes):
    return Training(3, 8, sgd(lr=0.1), constant(), **changes)


def decided(block, *reads, shape=(10,), samples=50, epochs=3, learns=("student",), free=2 * MOST, **changes):
    plan = stages(*(reads or (from_teacher(),)), epochs=epochs, learns=learns)
    return decide(CacheBlock(**block), plan, training(**changes), samples, lambda tap: shape, free=free)


def test_what_is_wanted_is_what_is_read_of_a_teacher_that_rests():
    assert teacher_taps(stages(from_teacher(), from_teacher("2"), TARGETS)) == {from_teacher(), from_teacher("2")}
    assert teacher_taps(stages(TARGETS)) == frozenset()
    assert teacher_taps(stages(from_teacher(), learns=("student", "teacher.head"))) == frozenset()


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_mixed_inputs_cannot_be_stored(options, tmp_path):
    soft = SoftTargets(10, **options)
    assert decided({}, soft=soft).use is False
    with pytest.raises(LimbeckError, match="mixes the samples of each batch, but a store of"):
        decided({"use": True}, soft=soft)
    with pytest.raises(LimbeckError, match=r"of each batch, but teacher.table has one row for each sample"):
        soft_label_table(TeacherBlock(table="t.csv"), arrays(torch.rand(9, 2), [0, 1, 2] * 3), training(soft=soft))


def test_label_smoothing_does_not_prevent_a_store():
    assert decided({}, soft=SoftTargets(10, label_smoothing=0.1)).use is True


def test_auto_keeps_what_changes_nothing():
    block = decided({})
    assert (block.use, block.views, block.dtype) == (True, 1, "float32")


@pytest.mark.parametrize(
    "case",
    [
        {"augment": Augment(flip=True)},
        {"epochs": 1},
        {"learns": ("teacher",)},
        {"shape": (MOST,), "samples": 2},
    ],
)
def test_auto_leaves_what_would_change_the_views_or_not_pay(case):
    assert decided({}, **case).use is False


def test_a_transform_of_the_data_makes_views_too():
    plan = stages(from_teacher(), epochs=6)

    def of(**block):
        return decide(CacheBlock(**block), plan, training(), 50, lambda tap: (10,), free=MOST, transformed=True)

    assert of().use is False
    assert of(use=True).views == 4


def test_a_teacher_that_is_not_read_is_not_kept():
    assert decided({}, TARGETS).use is False
    with pytest.raises(LimbeckError, match="does not read the teacher, or trains it"):
        decided({"use": True}, TARGETS)


def test_what_is_said_is_taken():
    block = decided({"use": True, "views": 2, "dtype": "bfloat16"}, augment=Augment(flip=True))
    assert (block.use, block.views, block.dtype) == (True, 2, "bfloat16")
    assert decided({"use": False, "views": 7}) == CacheBlock(use=False, views=7)


def test_asked_for_augmented_images_are_kept_in_four_views_or_as_many_as_there_are_epochs():
    assert decided({"use": True}, augment=Augment(flip=True), epochs=9).views == 4
    assert decided({"use": True}, augment=Augment(flip=True), epochs=3).views == 3
    block = decided({"use": True})
    assert (block.views, block.dtype) == (1, "float32")
    assert decided({"use": True}, shape=(MOST,), samples=1).dtype == "float16"


def test_several_views_of_images_that_never_change_are_refused():
    with pytest.raises(LimbeckError, match=r"cache.views is 4, but nothing is augmented"):
        decided({"use": True, "views": 4})


def test_only_logits_can_be_kept_in_part():
    data, teacher = small(), nn.Linear(4, 3)
    block = CacheBlock(use=True, views=1, dtype="float32", top_k=2)
    assert fingerprint(block, teacher, LOGITS, data, training(), ENGINE).taps[from_teacher()].top_k == 2
    few = {"use": True, "top_k": 2}
    assert decided(few).top_k == 2
    with pytest.raises(
        LimbeckError, match=r"cache.top_k stores the teacher's logits, but the method also reads teacher.0,"
    ):
        decided(few, from_teacher(), from_teacher("0"), Tap("teacher", "0", "output", 0))
    with pytest.raises(LimbeckError, match=r"top_k is 10 for a tensor of \(10,\) a sample"):
        decided({"use": True, "top_k": 10})


def test_auto_takes_no_more_than_the_disk_has():
    size = 50 * 10 * 4
    assert decided({}, free=LEFT_FREE + size).use is True
    assert decided({}, free=LEFT_FREE + size - 1).use is False


def small():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 4, generator=generator)
    return arrays(inputs, torch.arange(40) % 3, validation=0)


def renamed(network):
    """The same weights in a network with another attribute."""
    other = copy.deepcopy(network)
    other.scale = 2.0
    return other


@pytest.mark.parametrize("part", ["weights", "structure", "data", "transform", "seed", "views", "taps", "precision"])
def test_the_fingerprint_knows_all_that_the_numbers_depend_on(part):
    torch.manual_seed(0)
    data, teacher = small(), nn.Linear(4, 3)
    block = CacheBlock(use=True, views=1, dtype="float32")
    base = fingerprint(block, teacher, LOGITS, data, training(), ENGINE)
    assert base == fingerprint(block, teacher, LOGITS, data, training(), ENGINE)
    changed = {
        "weights": lambda: fingerprint(block, nn.Linear(4, 3), LOGITS, data, training(), ENGINE),
        "structure": lambda: fingerprint(block, renamed(teacher), LOGITS, data, training(), ENGINE),
        "data": lambda: fingerprint(block, teacher, LOGITS, data, training(exclude=(1,)), ENGINE),
        "transform": lambda: fingerprint(block, teacher, LOGITS, data, training(augment=Augment(flip=True)), ENGINE),
        "seed": lambda: fingerprint(
            CacheBlock(**{**dict(block), "seed": 1}), teacher, LOGITS, data, training(), ENGINE
        ),
        "views": lambda: fingerprint(
            CacheBlock(**{**dict(block), "views": 2}), teacher, LOGITS, data, training(), ENGINE
        ),
        "taps": lambda: fingerprint(block, teacher, frozenset({Tap("teacher", "", "input")}), data, training(), ENGINE),
        "precision": lambda: fingerprint(
            block, teacher, LOGITS, data, training(), make_engine(device="cpu", precision="bf16")
        ),
    }[part]()
    differing = [name for name in base.__dataclass_fields__ if getattr(base, name) != getattr(changed, name)]
    assert differing == [part]


def build_now(building):
    """The store that `keep` returns."""
    while True:
        try:
            next(building)
        except StopIteration as end:
            return end.value


def test_a_training_from_the_store_is_the_training_beside_the_teacher(tmp_path):
    data, block = small(), CacheBlock(use=True, views=1, dtype="float32")
    found = []
    for stored in (False, True):
        torch.manual_seed(3)
        networks = {"student": nn.Linear(4, 3), "teacher": nn.Linear(4, 3)}
        terms = {"soft": Term(lambda mine, wanted: (mine - wanted).square().mean(), (from_student(), from_teacher()))}
        plan = (Stage("one", terms, 3, sgd(lr=0.1), constant()),)
        way = cached(training(), block)
        store = None
        if stored:
            store = build_now(keep(tmp_path / "store", block, networks["teacher"], LOGITS, data, way, ENGINE))
            networks["teacher"].register_forward_pre_hook(_never)
        batches = training_batches(data, way, seed=0, engine=ENGINE)
        found.append([epoch.loss for epoch in run(plan, networks, batches, ENGINE, store=store)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0][-1] < found[0][0]


IMAGES = {"crop": 1, "flip": True}


def pictures(**options):
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return arrays(images, torch.arange(30) % 3, validation=0, **options)


def convolution():
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 3))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_stored_row_is_what_the_teacher_gives_on_the_very_image_that_is_trained_on(tmp_path, precision):
    data, teacher, engine = pictures(), convolution(), make_engine(device="cpu", precision=precision)
    block = CacheBlock(use=True, views=3, seed=9, dtype="float32")
    way = cached(training(augment=Augment(**IMAGES), exclude=(1,)), block)
    taps = frozenset({from_teacher(), from_teacher("0")})
    store = build_now(keep(tmp_path / "store", block, teacher, taps, data, way, engine))
    assert teacher.training
    teacher.eval()
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    for epoch in range(5):
        for batch in training_batches(data, way, seed=1, engine=engine)(epoch):
            with torch.no_grad(), low:
                maps = teacher[0](batch.inputs)
                expected = {from_teacher("0"): maps, from_teacher(): teacher[1:](maps)}
            read = store.read(batch.index, batch.view)
            off = 2e-2 if precision == "bf16" else 1e-5
            assert all((read[tap] - expected[tap]).norm() <= off * expected[tap].norm() for tap in taps)
    others = training_batches(data, replace(way, view_seed=1), seed=1, engine=engine)
    batch = next(iter(others(0)))
    assert (store.read(batch.index, batch.view)[from_teacher("0")] - teacher[0](batch.inputs)).norm() > 1


def test_low_precision_is_seen_in_what_is_kept(tmp_path):
    data, teacher, block = pictures(), convolution(), CacheBlock(use=True, views=1, dtype="float32")
    found = [
        build_now(
            keep(
                tmp_path / precision,
                block,
                teacher,
                LOGITS,
                data,
                training(),
                make_engine(device="cpu", precision=precision),
            )
        ).read(torch.arange(24), 0)[from_teacher()]
        for precision in ("32", "bf16")
    ]
    assert 1e-4 < (found[0] - found[1]).norm() / found[0].norm() < 2e-2


def test_the_fingerprint_knows_how_images_are_normalised():
    block = CacheBlock(use=True, views=1, dtype="float32")
    one, other = (
        fingerprint(block, nn.Linear(2, 2), LOGITS, data, training(), ENGINE).transform
        for data in (pictures(), pictures(normalise=False))
    )
    assert {key for key in one if one[key] != other[key]} == {"mean", "std"}


def test_another_transform_of_images_on_disk_is_not_other_data(tmp_path):
    for path in (tmp_path / part / kind / "1.png" for part in ("train", "test") for kind in ("cat", "dog")):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (90 if path.parent.name == "cat" else 10, 40, 7)).save(path)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef same(size):\n    return lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8)\n"
    )
    block, teacher, found = CacheBlock(use=True, views=1, dtype="float32"), nn.Linear(2, 2), []
    for transform in (None, "random_resized_crop", f"{tmp_path}/mine.py:same"):
        options = {"streaming": True, "size": (8, 8), "validation": 0, "transform": transform}
        data = load("folder", path=str(tmp_path), **options)
        found.append(fingerprint(block, teacher, LOGITS, data, training(), ENGINE))
    assert len({made.data for made in found}) == 1
    assert len({made.digest for made in found}) == 3
    with pytest.raises(LimbeckError, match="not fit: the transform of the samples: function is None in the store"):
        refuse_difference(tmp_path, found[0], found[1])


def test_rows_of_a_table_are_those_of_the_samples_that_are_left(tmp_path):
    data = pictures()
    names = tuple(f"{number}.png" for number in range(len(data.train)))
    data = replace(data, train=replace(data.train, names=names))
    lines = [f"{number}.png,{number},{-number},0.5" for number in reversed(range(len(names)))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,0,1,2", *lines]) + "\n")
    block = TeacherBlock(table=str(tmp_path / "labels.csv"), values="logits")
    table = soft_label_table(block, data, training(exclude=(1,)))
    left = torch.nonzero(data.train.targets != 1).flatten()
    assert 0 < len(left) < len(names)
    assert table.read(torch.arange(len(left)), 0)[from_teacher()][:, 0].tolist() == left.tolist()


def _never(module, given):
    raise AssertionError("the teacher ran although its outputs are kept")


def test_a_stage_that_reads_more_than_is_kept_runs_the_teacher(tmp_path):
    data, block = small(), CacheBlock(use=True, views=1, dtype="float32")
    networks = {"student": nn.Linear(4, 3), "teacher": nn.Sequential(nn.Linear(4, 3), nn.ReLU())}
    store = build_now(keep(tmp_path / "store", block, networks["teacher"], LOGITS, data, training(), ENGINE))
    batches = training_batches(data, training(), seed=0, engine=ENGINE)
    terms = {
        "both": Term(lambda mine, *theirs: (mine - sum(theirs)).square().mean(), (from_student(), from_teacher("0")))
    }
    epochs = list(run((Stage("one", terms, 1, sgd(lr=0.1), constant()),), networks, batches, ENGINE, store=store))
    assert len(epochs) == 1
