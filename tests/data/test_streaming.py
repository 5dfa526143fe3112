import io
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from contextlib import suppress

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import Augment, Batches, load, normalise, split_off
from limbeck.data.decoding import fitted, picture
from limbeck.data.images import Images
from limbeck.data.keys import Purpose, key
from limbeck.data.streaming import AHEAD, Decoder, Wanted, _go_quietly
from limbeck.data.trees import Reader
from limbeck.data.views import change, draws

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a machine of one processor
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forking, Python 3.12
]

BOTH = Augment(crop=2, flip=True)
SIZE = (10, 12)
zipfile_of = zipfile.ZipFile
NOISE = """
    import random, numpy, torch

    def noise(size):
        def change(image):
            pixels = torch.from_numpy(numpy.array(image.resize((size[1], size[0]))).reshape(*size, -1)).permute(2, 0, 1)
            drawn = random.randrange(256), numpy.random.randint(256), int(torch.randint(256, ()))
            return (pixels.int() * (drawn[0] + 1) + 3 * drawn[1] + 7 * drawn[2]).to(torch.uint8)
        return change
"""


def encoded(pixels, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def files(count=12, shape=(*SIZE, 3)):
    draw = numpy.random.default_rng(0)
    names = [f"{part}/{name}/{i:02}.png" for part in ("train", "test") for name in ("ant", "bee") for i in range(count)]
    return {name: encoded(draw.integers(0, 256, shape, dtype=numpy.uint8)) for name in names}


def tree(place, contents):
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return place
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("data") / "set", files())


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return written(tmp_path_factory.mktemp("code"), NOISE) + ":noise"


def written(place, code):
    (place / "mine.py").write_text(textwrap.dedent(code))
    return str(place / "mine.py")


def streamed(path, **options):
    return load("folder", path=path, streaming=True, **{"size": SIZE, "workers": 0, "validation": 0} | options)


def batches(data, **options):
    return Batches(data.train, **{"batch_size": 5, "seed": 0, "mean": data.mean, "std": data.std} | options)


def by_index(found):
    """A pass's inputs by the samples' places."""
    return {int(place): one for batch in found for place, one in zip(batch.index, batch.inputs, strict=True)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[place], other[place]) for place in one)


def processes():
    return {process.pid for process in multiprocessing.active_children()}


# what a streamed split is


@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_where_nothing_is_resized_it_is_what_a_load_into_memory_is(place, tmp_path):
    path = tree(tmp_path / place, files())
    held, data = load("folder", path=path, validation=4), streamed(path, validation=4)
    assert (data.shape, data.classes, data.mean, data.std) == (held.shape, held.classes, held.mean, held.std)
    for name in ("train", "validation", "test"):
        one, other = getattr(data, name), getattr(held, name)
        assert torch.equal(one.inputs[torch.arange(len(one))], other.inputs)
        assert torch.equal(one.targets, other.targets)
        assert (one.names, len(one.inputs)) == (other.names, len(other))


def test_its_batches_are_those_of_memory(folder):
    held, data = load("folder", path=folder, validation=0), streamed(folder)
    options = {"augment": BOTH, "views": 3, "view_seed": 4, "seed": 2}
    one, other = batches(data, **options), batches(held, **options)
    for found, expected in ((one(4), other(4)), (one.sweep(), other.sweep()), (one.view(1), other.view(1))):
        for batch, wanted in zip(found, expected, strict=True):
            assert torch.equal(batch.inputs, wanted.inputs)
            assert torch.equal(batch.targets, wanted.targets)
            assert torch.equal(batch.index, wanted.index)
            assert batch.view == wanted.view
    assert torch.equal(one.example_inputs(), other.example_inputs())
    assert torch.equal(one.example_inputs(), next(one.sweep()).inputs[:2])


def test_select_and_without_choose_images_without_reading_them(folder, tmp_path):
    data = streamed(tree(tmp_path / "set", files()))
    (tmp_path / "set" / "train" / "ant" / "03.png").unlink()
    chosen = data.train.without([1]).select(torch.tensor([3, 0]))
    assert chosen.names == ("train/ant/03.png", "train/ant/00.png")
    assert chosen.inputs.names == chosen.names
    assert chosen.targets.tolist() == [0, 0]
    assert torch.equal(chosen.inputs[torch.tensor([1])], streamed(folder).train.inputs[torch.tensor([0])])
    with pytest.raises(LimbeckError, match=r"train/ant/03.png in .* cannot be read: .*No such file"):
        chosen.inputs[torch.tensor([0])]


def test_a_limit_and_no_normalising_work(folder):
    data = streamed(folder, limit=6, normalise=False)
    assert (len(data.train), len(data.test), data.mean, data.std) == (6, 6, (0.0,) * 3, (1.0,) * 3)


def test_images_that_are_all_grey_have_one_channel(tmp_path):
    draw = numpy.random.default_rng(1)
    grey = [draw.integers(0, 256, (*SIZE, 1), dtype=numpy.uint8) for _ in range(4)]
    contents = {f"{part}/a/{i}.png": encoded(one[..., 0]) for i, one in enumerate(grey) for part in ("train", "test")}
    contents["train/a/x.png"] = encoded(grey[0].repeat(3, axis=2))
    path = tree(tmp_path / "set", contents)
    held, data = load("folder", path=path, validation=0), streamed(path)
    assert data.shape == (1, *SIZE)
    assert (data.mean, data.std) == (held.mean, held.std)
    assert torch.equal(data.train.inputs[torch.arange(5)], held.train.inputs)


IN_COLOUR = encoded(numpy.full((*SIZE, 3), [1, 2, 3], numpy.uint8))
PARTS = ("train", "validation", "test")


def grey_files(count=9):
    return {f"{part}/a/{i}.png": encoded(numpy.full(SIZE, i, numpy.uint8)) for part in PARTS for i in range(count)}


@pytest.mark.parametrize("part", PARTS)
def test_one_coloured_image_makes_all_of_them_coloured(part, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.data.building._AT_ONCE", 3)
    path = tree(tmp_path / "set", grey_files() | {f"{part}/a/1.png": IN_COLOUR})
    held, data = load("folder", path=path), streamed(path)
    assert (data.shape, data.mean, data.std) == (held.shape, held.mean, held.std) == ((3, *SIZE), held.mean, held.std)
    assert {getattr(data, name).inputs.channels for name in PARTS} == {3}


def test_a_coloured_image_that_was_not_looked_at_among_grey_ones_is_refused_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.data.building._LOOKED_AT", 5)
    path = tree(tmp_path / "set", grey_files())
    drawn = split_off(5, streamed(path).test, 0)[1].names
    name = next(name for name in grey_files() if name.startswith("test") and name not in drawn)
    data = streamed(tree(path, {name: IN_COLOUR}))
    with pytest.raises(LimbeckError, match=rf"{name} in .* is in colour, but the images that were checked .* all grey"):
        data.test.inputs[torch.arange(9)]


@pytest.mark.parametrize("part", PARTS)
def test_a_broken_image_of_each_split_is_found_when_loading(part, tmp_path):
    path = tree(tmp_path / "set", grey_files() | {f"{part}/a/7.png": b"nonsense"})
    with pytest.raises(LimbeckError, match=rf"{part}/a/7.png in .* cannot be read as an image"):
        streamed(path)


def test_of_each_split_no_more_is_looked_at_than_is_said(tmp_path, monkeypatch):
    path, read = tree(tmp_path / "set", grey_files()), []
    monkeypatch.setattr("limbeck.data.building._LOOKED_AT", 4)
    monkeypatch.setattr(Reader, "__call__", lambda self, name: read.append(name) or (self.place / name).read_bytes())
    streamed(path)
    assert [sum(name.startswith(part) for name in read) for part in PARTS] == [4, 4, 4]
    assert len(set(read)) == 12


GREY = """
    import numpy, torch

    def one(size):
        return lambda image: torch.from_numpy(numpy.array(image.convert("L").resize((size[1], size[0]))))[None]

    def three(size):
        return lambda image: one(size)(image).expand(3, -1, -1)
"""


def test_a_transform_of_grey_images_gives_one_channel(tmp_path):
    path, code = tree(tmp_path / "set", grey_files()), written(tmp_path, GREY)
    data = streamed(path, transform=f"{code}:one")
    assert [tuple(batch.inputs.shape[1:]) for batch in batches(data, batch_size=9)(0)] == [(1, *SIZE)]
    allowed = (
        r"gave torch.uint8 of shape \(3, 10, 12\) for train/a/0.png .*; allowed is torch.uint8 of shape \(1, 10, 12\)"
    )
    with pytest.raises(LimbeckError, match=allowed):
        streamed(path, transform=f"{code}:three")


def test_a_transform_is_given_a_grey_image_among_coloured_ones_in_colour(tmp_path, noise):
    path = tree(tmp_path / "set", files() | {"train/ant/03.png": encoded(numpy.full(SIZE, 7, numpy.uint8))})
    found = by_index(batches(streamed(path, transform=noise), mean=(0.0,) * 3, std=(1.0,) * 3)(0))
    assert found[3].shape == (3, *SIZE)
    assert len(found[3].unique()) == 1


def test_a_grey_image_among_coloured_ones_has_three_equal_channels(tmp_path):
    path = tree(tmp_path / "set", files() | {"train/ant/00.png": encoded(numpy.full(SIZE, 7, numpy.uint8))})
    assert streamed(path).train.inputs[torch.tensor([0])].unique().tolist() == [7]


def test_an_image_is_resized_until_it_covers_the_size_and_its_centre_is_cut_out(tmp_path):
    pixels = numpy.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=numpy.uint8)
    path = tree(tmp_path / "set", {f"{part}/a/{i}.png": encoded(pixels) for part in ("train", "test") for i in "12"})
    small = numpy.asarray(Image.fromarray(pixels).resize((50, 20), Image.Resampling.BILINEAR))
    for size, (top, left) in (((20, 20), (0, 15)), ((10, 50), (5, 0))):
        found = streamed(path, size=size).train.inputs[torch.tensor([0])][0]
        cut = small[top : top + size[0], left : left + size[1]]
        assert torch.equal(found, torch.from_numpy(cut.copy()).permute(2, 0, 1))


def test_a_large_jpeg_is_decoded_smaller_but_to_no_less_than_twice_what_is_needed():
    draw = numpy.random.default_rng(0)
    data = encoded(draw.integers(0, 256, (256, 320, 3), dtype=numpy.uint8), "jpeg")
    sizes = {
        least: picture("x", data, least=least).image.size for least in (None, (129, 10), (64, 80), (32, 32), (16, 16))
    }
    assert sizes == {
        None: (320, 256),
        (129, 10): (320, 256),
        (64, 80): (160, 128),
        (32, 32): (80, 64),
        (16, 16): (40, 32),
    }


def test_a_jpeg_that_is_made_smaller_is_decoded_smaller(monkeypatch, tmp_path):
    seen = []

    def watched(*given, **options):
        seen.append(picture(*given, **options))
        return seen[-1]

    monkeypatch.setattr("limbeck.data.pixels.picture", watched)
    data = encoded(numpy.zeros((256, 320, 3), numpy.uint8), "jpeg")
    assert Images(Reader(tmp_path), (), (64, 80)).plain(("x", data)).shape == (3, 64, 80)
    assert [found.image.size for found in seen] == [(160, 128)]


def test_a_large_jpeg_looks_the_same_though_it_is_decoded_smaller(tmp_path):
    rough = numpy.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=numpy.uint8)
    data = encoded(numpy.asarray(Image.fromarray(rough).resize((320, 256), Image.Resampling.BICUBIC)), "jpeg")
    path = tree(tmp_path / "set", {f"{part}/a/{i}.jpg": data for part in ("train", "test") for i in "12"})
    found = streamed(path, size=(64, 80)).train.inputs[torch.tensor([0])][0]
    whole = numpy.asarray(fitted(picture("x", data).image, (64, 80)))
    assert abs(found.permute(1, 2, 0).numpy().astype(int) - whole).mean() < 5


# views


def expected(data, noise_of, seed, view):
    """Every sample's view in plain loops."""
    made = []
    for index, name in enumerate(data.train.names):
        word = key(Purpose.TRANSFORM, seed, view, index)
        random.seed(word)
        numpy.random.seed(word)
        torch.manual_seed(word)
        made.append(noise_of(Image.open(data.train.inputs.reader.place / name)))
    numbers = draws(torch.arange(len(made)), options=BOTH, seed=seed, view=view)
    return normalise(change(torch.stack(made), numbers, options=BOTH), data.mean, data.std)


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 30),
    workers=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2]),
    seed=st.integers(0, 3),
    view_seed=st.integers(0, 2**40),
    views=st.integers(1, 3),
    epoch=st.integers(0, 5),
)
def test_a_view_is_a_function_of_seed_view_and_index_alone(
    folder, noise, batch_size, workers, seed, view_seed, views, epoch
):
    data = streamed(folder, workers=workers, transform=noise)
    made = batches(data, batch_size=batch_size, seed=seed, view_seed=view_seed, views=views, augment=BOTH)
    found = by_index(made(epoch))
    namespace = {}
    exec(textwrap.dedent(NOISE), namespace)
    whole = expected(data, namespace["noise"](SIZE), view_seed, epoch % views)
    assert len(found) == made.samples
    assert all(torch.equal(one, whole[place]) for place, one in found.items())
    assert same(by_index(made.view(epoch % views)), dict(enumerate(whole)))


def test_workers_read_a_zip_file_each_for_itself(folder, tmp_path, monkeypatch):
    path = tree(tmp_path / "set.zip", files())
    assert same(by_index(batches(streamed(path, workers=2))(0)), by_index(batches(streamed(folder))(0)))
    opened, reader = [], Reader(path)
    monkeypatch.setattr("zipfile.ZipFile", lambda place: opened.append(place) or zipfile_of(place))
    contents = [reader("train/ant/00.png"), reader("train/ant/00.png")]
    assert len(opened) == 1
    monkeypatch.setattr("os.getpid", lambda: -1)
    contents += [reader("train/ant/00.png"), reader("train/ant/00.png")]
    assert len(opened) == 2
    assert set(contents) == {files()["train/ant/00.png"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_any_part_of_a_view_is_what_the_epochs_train_on(folder, workers):
    data = streamed(folder, workers=workers, transform="random_resized_crop")
    made = batches(data, augment=BOTH, views=2, view_seed=9)
    trained = by_index(made(3))
    parts = [by_index(made.view(1, start=start, stop=stop)) for start, stop in ((0, 7), (7, 7), (7, 8), (8, None))]
    assert [len(part) for part in parts] == [7, 0, 1, 16]
    assert same(trained, parts[0] | parts[2] | parts[3])
    assert not torch.equal(trained[0], by_index(made(0))[0])


def test_another_view_and_another_seed_make_another_transform(folder, noise):
    data = streamed(folder, transform=noise)
    first, again, view, seed = (
        by_index(batches(data, view_seed=s).view(v)) for s, v in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert same(first, again)
    assert not any(torch.equal(first[place], view[place]) or torch.equal(first[place], seed[place]) for place in first)


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_are_left_where_they_were(folder, noise, workers):
    made = batches(streamed(folder, transform=noise, workers=workers))
    random.seed(1)
    numpy.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    by_index(made(0))
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_the_transform_is_for_training_views_only(folder, noise):
    plain, data = streamed(folder), streamed(folder, transform=noise)
    assert (plain.train.transform, data.train.transform) == (None, noise)
    assert (data.mean, data.std) == (plain.mean, plain.std)
    assert same(by_index(batches(data).sweep()), by_index(batches(plain).sweep()))
    assert same(by_index(batches(data, shuffle=False)(0)), by_index(batches(plain).sweep()))
    assert torch.equal(batches(data).example_inputs(), batches(plain).example_inputs())


@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_a_decoder_that_was_sent_to_another_process_decodes_the_same(place, tmp_path, noise):
    # as where processes are not forked
    inputs = streamed(tree(tmp_path / place, files()), transform=noise).train.inputs
    decoder = Decoder(inputs, seed=3)
    wanted = Wanted(inputs.names[4:8], [4, 5, 6, 7], 2)
    pixels, problem = decoder[wanted]
    sent = pickle.loads(pickle.dumps(decoder))
    assert problem == ""
    assert torch.equal(sent[wanted][0], pixels)


# workers


def test_workers_end_with_a_pass_that_is_left_early(folder):
    before, made = processes(), batches(streamed(folder, workers=2))
    for _ in made(0):
        assert len(processes() - before) == 2
        break
    assert processes() == before
    assert same(by_index(made(0)), by_index(made(0)))


def test_workers_end_with_an_error_of_who_takes_the_batches(folder):
    before, made = processes(), batches(streamed(folder, workers=2))

    def use():
        for batch in made(0):
            len(batch.index) / 0

    with pytest.raises(ZeroDivisionError) as held:
        use()
    assert held.tb is not None
    assert processes() == before


@pytest.mark.parametrize("shuffle", [True, False])
def test_workers_end_with_the_pass(folder, shuffle):
    before, made = processes(), batches(streamed(folder, workers=2), shuffle=shuffle)
    assert processes() == before
    assert {len(processes() - before) for _ in made(0)} == {2}
    assert processes() == before


def test_a_pass_of_one_batch_starts_no_workers(folder):
    before, made = processes(), batches(streamed(folder, workers=2))
    assert [processes() for _ in made.view(0, start=3, stop=8)] == [before]


def test_two_passes_at_once_do_not_disturb_each_other(folder):
    before, made = processes(), batches(streamed(folder, workers=1), augment=BOTH)
    pairs = list(zip(made(0), made(1), strict=True))
    for epoch in (0, 1):
        assert same(by_index(pair[epoch] for pair in pairs), by_index(made(epoch)))
    assert processes() == before


COUNTING = """
    import torch

    def counting(size):
        def change(image):
            with open({path!r}, "a") as file:
                file.write(".")
            return torch.zeros(3, *size, dtype=torch.uint8)
        return change
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_is_decoded_ahead_than_each_worker_may(folder, workers, tmp_path):
    path = tmp_path / "count"
    code = written(tmp_path, COUNTING.format(path=str(path)))
    made = batches(streamed(folder, workers=workers, transform=f"{code}:counting"), batch_size=2)
    path.unlink()
    for number, _ in enumerate(made(0), 1):
        counted, until = -1, time.monotonic() + 0.4
        while time.monotonic() < until and counted < 24:
            time.sleep(0.05)
            counted = len(path.read_text())
        assert counted <= 2 * (number + AHEAD * workers)
        if number == 3:
            break
    assert (workers == 0) == (counted == 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(tmp_path, workers):
    path = tree(tmp_path / "set", files())
    data, before = streamed(path, workers=workers), processes()
    (path / "train/bee/05.png").write_bytes(b"nonsense")
    with pytest.raises(LimbeckError, match=r"^train/bee/05.png in .*set cannot be read as an image") as held:
        by_index(batches(data)(0))
    assert processes() == before  # while the traceback is held
    assert "\n" not in str(held.value)


DYING = """
    import os, signal, torch

    def dying(size):
        here = os.getpid()
        def change(image):
            if os.getpid() != here:
                {how}
            return torch.zeros(3, *size, dtype=torch.uint8)
        return change
"""


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_worker_that_dies_is_said_so(how, folder, tmp_path):
    before, code = processes(), written(tmp_path, DYING.format(how=how))
    made = batches(streamed(folder, workers=1, transform=f"{code}:dying"))
    with pytest.raises(
        LimbeckError, match=r"a process that decodes images failed: Data.*; workers: 0 decodes in the main process"
    ):
        by_index(made(0))
    assert processes() == before


def test_workers_of_which_one_dies_while_they_start_are_said_to(folder, monkeypatch):
    before, made = processes(), batches(streamed(folder, workers=2))

    def started(loader):
        found = iter(loader)
        os.kill(min(processes() - before), signal.SIGKILL)
        time.sleep(5)
        return found

    monkeypatch.setattr("limbeck.data.streaming.iter", started, raising=False)
    with pytest.raises(
        LimbeckError, match=r"a process that decodes images failed: .* is killed by signal: Killed"
    ) as held:
        by_index(made(0))
    assert held.tb is not None
    assert processes() == before


def test_an_error_of_another_kind_is_left_as_it_is(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    made = batches(streamed(folder))
    monkeypatch.setattr(Images, "plain", broken)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        by_index(made(0))


SLOW = """
    import time, torch

    def slow(size):
        def change(image):
            time.sleep(0.1)
            return torch.zeros(3, *size, dtype=torch.uint8)
        return change
"""


def test_an_interrupt_ends_the_workers_even_where_its_traceback_is_kept(folder, tmp_path):
    before, code = processes(), written(tmp_path, SLOW)
    made = batches(streamed(folder, workers=2, transform=f"{code}:slow"), batch_size=1)

    def use():
        for number, _ in enumerate(made(0)):
            if number == 3:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as held:
            use()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert held.tb is not None
    assert processes() == before


def test_workers_go_on_where_the_interrupt_is_theirs_alone(folder):
    before, made = processes(), batches(streamed(folder, workers=2), augment=BOTH)
    expected, found = by_index(made(0)), []
    for batch in made(0):
        found.append(batch)
        for worker in processes() - before if len(found) > 1 else ():  # when both workers have begun
            os.kill(worker, signal.SIGINT)
    assert same(by_index(found), expected)


@pytest.mark.parametrize(("error", "shown"), [(BrokenPipeError(), False), (EOFError(), False), (ValueError(), True)])
def test_a_worker_is_silent_on_broken_connections_alone(error, shown, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.__excepthook__", lambda *args: seen.append(args))
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    try:
        _go_quietly(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        sys.excepthook(type(error), error, None)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert bool(seen) == shown


def test_ctrl_c_leaves_no_process_and_one_traceback(folder, tmp_path):
    code = written(tmp_path, SLOW)
    script = f"""
        import signal
        from limbeck.data import Batches, load

        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            data = load("folder", path={str(folder)!r}, streaming=True, size=(4, 4), workers=2, transform="{code}:slow")
            made = Batches(data.train, batch_size=3, seed=0, mean=data.mean, std=data.std)
            for _ in made(0):
                print("ready", flush=True)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("Traceback") == 1, errors
    assert errors.strip().endswith("KeyboardInterrupt")
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        pytest.fail("a worker is left")


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streaming": True, "workers": -1}, "workers is -1; allowed are 0 and greater"),
        ({"workers": 2}, "workers is 2, but workers needs streaming=True"),
        (
            {"transform": "random_resized_crop"},
            "transform is 'random_resized_crop', but transform needs streaming=True",
        ),
        ({"streaming": True, "transform": "random_resize"}, "did you mean 'random_resized_crop'"),
        ({"streaming": True, "transform": "elsewhere.py:f"}, "there is no file elsewhere.py"),
        ({"streaming": True, "transform": "mine.txt:f"}, "there is no transform 'mine.txt:f': allowed are"),
    ],
)
def test_load_refuses_what_cannot_be_streamed_so(options, message, folder):
    with pytest.raises(LimbeckError, match=message):
        load("folder", path=folder, size=SIZE, **options)


def test_the_first_image_is_opened_when_loading(tmp_path):
    path = tree(tmp_path / "set", files() | {"train/ant/00.png": b"nonsense"})
    with pytest.raises(LimbeckError, match=r"train/ant/00.png in .* cannot be read as an image"):
        streamed(path)


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (
            "def f(size):\n  return lambda image: 1 / 0",
            "f",
            r"mine.py:f fails on train/ant/00.png .*: ZeroDivisionError",
        ),
        (
            "def f(size):\n  return lambda image: image",
            "f",
            r"mine.py:f gave (Png)?Image(File)? for train/ant/00.png .*; allowed is",
        ),
        (
            "import torch\ndef f(size):\n  return lambda image: torch.zeros(3, 2, 2)",
            "f",
            r"gave torch.float32 of shape \(3, 2, 2\) for .*; allowed is torch.uint8 of shape \(3, 10, 12\)",
        ),
        ("def f(size):\n  return 7", "f", "mine.py:f gave int; allowed is a function of an image"),
        ("def f():\n  pass", "f", r"mine.py:f could not be called with \(10, 12\): TypeError"),
        ("def crop(size):\n  pass", "crops", r"has no function 'crops': did you mean 'crop'\?"),
        ("one = 1", "f", r"has no function 'f': it has none"),
        ("1 / 0", "f", "could not be imported: ZeroDivisionError"),
    ],
)
def test_a_transform_that_does_not_work_is_refused_when_loading(code, name, message, folder, tmp_path):
    with pytest.raises(LimbeckError, match=message):
        streamed(folder, transform=f"{written(tmp_path, code)}:{name}")


def test_a_transform_that_does_not_exist_is_refused_before_an_image_is_read(tmp_path):
    path = tree(tmp_path / "set", dict.fromkeys(files(), b"nonsense"))
    with pytest.raises(LimbeckError, match="there is no transform 'mine'"):
        streamed(path, transform="mine")


def test_a_transforms_file_that_cannot_be_read_is_refused(folder, noise, monkeypatch):
    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(LimbeckError, match=r"mine.py cannot be read: .*Permission denied"):
        streamed(folder, transform=noise)


def test_workers_are_one_a_processor_and_at_most_4(folder, monkeypatch):
    for processors, expected in ((3, 3), (9, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, count=processors: set(range(count)), raising=False)
        monkeypatch.setattr("os.cpu_count", lambda count=processors: count)
        assert streamed(folder, workers=None).train.inputs.workers == expected


def test_images_too_small_to_be_augmented_are_refused_at_once(folder):
    with pytest.raises(LimbeckError, match="but the images are 10 x 12 pixels"):
        batches(streamed(folder), augment=Augment(crop=11))


# digest


def test_the_digest_knows_names_sizes_beginnings_targets_size_and_transform(tmp_path, noise):
    contents = files()
    path = tree(tmp_path / "set", contents)
    first = streamed(path).train.digest()
    assert len(first) == 32
    assert streamed(tree(tmp_path / "moved.zip", contents)).train.digest() == first
    assert streamed(path, workers=2, seed=4).train.digest() == first
    split = streamed(path).train
    large = {name: content + bytes(5000) for name, content in contents.items()}
    grown = large | {"train/ant/00.png": large["train/ant/00.png"] + b"x"}
    renamed = {name.replace("/11", "/12"): content for name, content in contents.items()}
    others = {
        streamed(path, size=(9, 9)).train.digest(),
        streamed(path, transform=noise).train.digest(),
        streamed(path, transform="random_resized_crop").train.digest(),
        split.select(torch.arange(23)).digest(),
        split.select(torch.arange(24).flip(0)).digest(),
        streamed(tree(tmp_path / "renamed", renamed)).train.digest(),
        streamed(tree(tmp_path / "large", large)).train.digest(),
        streamed(tree(tmp_path / "grown", grown)).train.digest(),
        streamed(
            tree(tmp_path / "other", contents | {"train/ant/00.png": contents["train/ant/01.png"]})
        ).train.digest(),
    }
    assert len(others | {first}) == 10


def test_the_digest_knows_a_transforms_code_but_not_its_place(folder, tmp_path, noise):
    first = streamed(folder, transform=noise).train.digest()
    code = written(tmp_path, NOISE)
    assert streamed(folder, transform=f"{code}:noise").train.digest() == first
    code = written(tmp_path, NOISE + "\n")
    assert streamed(folder, transform=f"{code}:noise").train.digest() != first


def test_the_digest_sees_4_kib_of_a_file_and_no_more(tmp_path):
    content, digests = files(1)["train/ant/00.png"].ljust(6000, b"\0"), []
    assert content[4000:] == bytes(2000)  # the image ends before
    for changed in (None, 4000, 4095, 4096):
        other = bytearray(content)
        if changed is not None:
            other[changed] ^= 1
        digests.append(streamed(tree(tmp_path / "set", files(1) | {"train/ant/00.png": bytes(other)})).train.digest())
    assert len(set(digests[:3])) == 3
    assert digests[3] == digests[0]


@pytest.mark.parametrize("gone", [False, True])
def test_a_transform_stays_what_it_was_when_loaded(gone, folder, tmp_path):
    code = written(tmp_path, NOISE)
    data = streamed(folder, transform=f"{code}:noise")
    digest, views = data.train.digest(), by_index(batches(data)(0))
    written(tmp_path, NOISE.replace("3 * drawn", "5 * drawn"))
    assert not same(by_index(batches(streamed(folder, transform=f"{code}:noise"))(0)), views)
    if gone:
        os.remove(code)
    assert data.train.digest() == digest
    assert same(by_index(batches(data)(0)), views)


def test_the_digest_of_a_file_that_is_gone_is_an_error(tmp_path):
    split = streamed(tree(tmp_path / "set", files())).train
    (tmp_path / "set/train/bee/01.png").unlink()
    with pytest.raises(LimbeckError, match=r"train/bee/01.png in .* cannot be read"):
        split.digest()
