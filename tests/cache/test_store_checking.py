import copy

import pytest
import tiny
import torch

from limbeck.cache.building import build
from limbeck.cache.checking import ROWS, computes_in, verify
from limbeck.cache.fingerprint import Format
from limbeck.cache.manifest import info
from limbeck.cache.reading import Store
from limbeck.core import LimbeckError, Tap
from limbeck.taps import evaluation_mode


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tiny.run(folder)
    return folder


@pytest.fixture
def store(made):
    return Store(made, tiny.fingerprint(tiny.teacher()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_store_of_this_teacher_is_found_good_in_every_format(tmp_path, dtype, top_k):
    network = tiny.teacher()
    taps = {tiny.LOGITS: Format(dtype, top_k), tiny.MAPS: Format(dtype)}
    expected = tiny.fingerprint(network, taps=taps)
    tiny.run(tmp_path, network, fingerprint=expected)
    found = verify(Store(tmp_path, expected), tiny.Reader(network), tiny.Source())
    assert found.rows == tiny.ROWS * tiny.VIEWS
    assert 0 <= found.deviation <= found.allowed
    assert found.tap in taps


def test_64_random_rows_of_all_views_are_compared_and_the_seed_chooses(tmp_path):
    tiny.run(tmp_path, source=tiny.Source(40), rows=40)
    store, seen = Store(tmp_path, tiny.fingerprint(tiny.teacher())), []

    class Noting(tiny.Source):
        def view(self, number, *, start=0, stop=None):
            seen[-1].add((number, start, stop))
            return super().view(number, start=start, stop=stop)

    for seed in (0, 0, 1):
        seen.append(set())
        assert verify(store, tiny.Reader(tiny.teacher()), Noting(40), seed=seed).rows == ROWS == 64
    assert len(seen[0]) == 64
    assert {number for number, _, _ in seen[0]} == {0, 1}
    assert all(stop == start + 1 for _, start, stop in seen[0])
    assert seen[0] == seen[1] != seen[2]


def worse(network):
    """The teacher with one weight of its last layer moved by 0.1."""
    other = copy.deepcopy(network)
    other[4].weight.data[2] += 0.1
    return other


@pytest.mark.parametrize(
    ("network", "source"), [(worse(tiny.teacher()), tiny.Source()), (tiny.teacher(), tiny.Source(batch=1))]
)
def test_another_teacher_or_other_views_are_found(store, network, source):
    source.inputs = source.inputs if source.batch != 1 else source.inputs.flip(0)
    with pytest.raises(LimbeckError, match=r"does not hold the outputs of this teacher on these views\. Delete"):
        verify(store, tiny.Reader(network), source)


def test_the_tap_the_view_and_the_sample_that_deviate_are_named(store):
    whole = tiny.Reader(tiny.teacher())

    def reader(batch):
        given = whole(batch)
        if batch.view == 1 and 17 in batch.index:
            given[tiny.LOGITS][0, 3] += 0.25
        return given

    with pytest.raises(LimbeckError, match=r"teacher of sample 17 in view 1 is 0\.25 away .* explains \d"):
        verify(store, reader, tiny.Source())


def test_a_teacher_that_gives_nan_is_found(store):
    source = tiny.Source()
    source.inputs[9] = torch.nan
    with pytest.raises(LimbeckError, match=r"of sample 9 in view . is nan away"):
        verify(store, tiny.Reader(tiny.teacher()), source)


def test_a_teacher_that_gives_another_shape_is_found(store):
    reader = lambda batch: {tap: rows[:, :2] for tap, rows in tiny.Reader(tiny.teacher())(batch).items()}  # noqa: E731
    with pytest.raises(LimbeckError, match=r"teacher of sample \d+ in view \d is \(2,\), stored is \(7,\)"):
        verify(store, reader, tiny.Source())


def test_a_teacher_in_bfloat16_deviates_between_batches_by_no_more_than_is_allowed(tmp_path):
    network = tiny.teacher().bfloat16()
    taps = {tiny.LOGITS: Format("float32")}
    expected = tiny.fingerprint(network, taps=taps, precision="bf16")

    def reader(batch):
        with evaluation_mode([network]), torch.no_grad():
            return {tiny.LOGITS: network(batch.inputs.bfloat16())}

    list(build(tmp_path, reader, tiny.Source(), fingerprint=expected, rows=tiny.ROWS))
    assert verify(Store(tmp_path, expected), reader, tiny.Source()).rows == 46


@pytest.mark.parametrize(
    ("precision", "device", "short", "found"),
    [
        ("32", "cpu", True, "32"),
        ("32", "cuda", True, "tf32"),
        ("32", "cuda", False, "32"),
        ("bf16", "cuda", True, "bf16"),
    ],
)
def test_a_gpu_that_may_shorten_its_factors_computes_less_precisely(precision, device, short, found):
    usual = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if short else "ieee"
    try:
        assert computes_in(precision, torch.device(device)) == found
    finally:
        torch.backends.cudnn.conv.fp32_precision = usual


def test_info_tells_the_plain_facts(made):
    network = tiny.teacher()
    found = info(made)
    assert found.finished
    assert found.manifest["fingerprint"] == tiny.fingerprint(network).as_json()
    assert (found.manifest["rows"], found.files, found.total) == (tiny.ROWS, 16, 16)
    assert found.manifest["shapes"] == {"teacher": [tiny.CLASSES], "teacher.0": [3, 6, 6]}
    assert found.bytes == sum(path.stat().st_size for path in made.glob("*.safetensors"))


def test_info_of_an_unfinished_store_tells_how_far_it_is(tmp_path):
    network = tiny.teacher()
    options = {"fingerprint": tiny.fingerprint(network), "rows": tiny.ROWS, "shard_bytes": tiny.SHARD_BYTES}
    going = build(tmp_path, tiny.Reader(network), tiny.Source(), **options)
    for _ in range(5):
        next(going)
    found = info(tmp_path)
    assert (found.finished, found.files, found.total) == (False, 4, 16)
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_info_of_nothing_is_refused(tmp_path):
    with pytest.raises(LimbeckError, match="there is no store in"):
        info(tmp_path)


def test_a_second_run_of_a_layer_is_told_apart(tmp_path):
    taps = {Tap("teacher", "act", "input", run): Format("float32") for run in (0, 1)}
    network = tiny.teacher()
    expected = tiny.fingerprint(network, taps=taps)
    reader = lambda batch: {tap: torch.full((len(batch.index), 1), float(tap.run)) for tap in taps}  # noqa: E731
    tiny.run(tmp_path, network, reader=reader, fingerprint=expected)
    read = Store(tmp_path, expected).read(torch.arange(2), 0)
    assert {tap.run: rows[0].item() for tap, rows in read.items()} == {0: 0.0, 1: 1.0}
