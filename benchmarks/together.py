"""Students trained together, against the same students trained one after the other with a teacher that costs nothing.

    python -m benchmarks.together

Six arms of resnet20 -> resnet8 on 5,000 random images of 32 x 32 with crops and flips, one seed. In each repetition the
students are trained together (`limbeck.train.together`); each is trained by itself, where it is given the teacher's
tensors that were computed before; and the teacher runs once over the batches that they read. The target for

    together / (sum of the students by themselves + the teacher)

is at most 1.15. The weights of the students are compared to the bit.
"""

import argparse
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import limbeck
from limbeck.core import Batch, Method, Reader, Stage, Tap
from limbeck.data import Augment, Batches, Data
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods import METHODS
from limbeck.models import build
from limbeck.optimizers import adam
from limbeck.options import call, fill
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import Pause, run, turns
from limbeck.train.readers import frozen_taps, network_reader
from limbeck.train.together import SharedBatches, SharedReaders, together

ARMS = ("alone", "kd", {"name": "fitnets", "hint_epochs": 1}, "fsp", "srrl", "at")
ENGINE = make_engine(device="cpu", precision="32")
TARGET = 1.15


class Known:
    """The teacher's tensors by batch, which reading does not copy."""

    def __init__(self, taps: Sequence[Tap], rows: int) -> None:
        self.taps, self.rows = frozenset(taps), rows
        self._batches: dict[tuple[int, ...], Mapping[Tap, Tensor]] = {}

    def add(self, batch: Batch, values: Mapping[Tap, Tensor]) -> None:
        """Keep the tensors of a batch."""
        self._batches[self._key(batch.index)] = dict(values)

    def read(self, index: Tensor, view: int) -> Mapping[Tap, Tensor]:
        """As `limbeck.core.Outputs.read`."""
        return self._batches[self._key(index)]

    def _key(self, index: Tensor) -> tuple[int, ...]:
        return tuple(index[:8].tolist())


class Bench:
    """The data and networks of the benchmark."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self.data = data
        self.training = Training(1, batch_size, adam(lr=1e-3), constant(), Augment(crop=4, flip=True))
        torch.manual_seed(1)
        self.teacher = build("resnet20", classes=10, shape=(3, 32, 32)).eval().requires_grad_(False)

    def batches(self) -> Batches:
        """The training set."""
        return training_batches(self.data, self.training, seed=0, engine=ENGINE)

    def arm(self, block: object) -> tuple[tuple[Stage, ...], dict[str, nn.Module]]:
        """A new student of an arm, and its stages."""
        torch.manual_seed(0)
        networks = {"student": build("resnet8", classes=10, shape=(3, 32, 32)), "teacher": self.teacher}
        method: Method = partial(call, METHODS, fill(METHODS, block, kind="method"))
        return plan(method, networks, self.data, self.training), networks

    def together(self) -> tuple[float, list[dict[str, Tensor]]]:
        """The seconds, and the students' weights."""
        shared, readers = SharedBatches(self.batches()), SharedReaders()
        arms = [self.arm(block) for block in ARMS]

        def training(stages: tuple[Stage, ...], networks: dict[str, nn.Module]) -> Generator[Pause, None, None]:
            torch.manual_seed(2)
            for event in turns(stages, networks, shared, ENGINE, reader=readers):
                if isinstance(event, Pause):
                    yield event

        start = time.perf_counter()
        for _ in together([training(*arm) for arm in arms], ENGINE):
            pass
        return time.perf_counter() - start, [networks["student"].state_dict() for _, networks in arms]

    def by_itself(self, block: object) -> tuple[float, dict[str, Tensor]]:
        """The seconds of one student whose teacher costs nothing, and its weights."""
        stages, networks = self.arm(block)
        torch.manual_seed(2)
        spent = 0.0
        for stage in stages:
            taps = frozen_taps(stage, networks).get("teacher", ())
            known = Known(taps, len(self.data.train))
            if taps:
                read = self._reader(taps)
                for batch in self.batches()(0):
                    known.add(batch, read(batch))
            start = time.perf_counter()
            for _ in run([stage], networks, self.batches(), ENGINE, store=known if taps else None):
                pass
            spent += time.perf_counter() - start
        return spent, networks["student"].state_dict()

    def teacher_seconds(self) -> float:
        """The seconds of one run of the teacher over each batch that students read it for."""
        rounds: dict[int, set[Tap]] = {}
        for block in ARMS:
            stages, networks = self.arm(block)
            for position, stage in enumerate(stages):
                rounds.setdefault(len(stages) - position, set()).update(frozen_taps(stage, networks).get("teacher", ()))
        spent = 0.0
        for taps in rounds.values():
            start = time.perf_counter()
            read = self._reader(tuple(taps))
            spent += time.perf_counter() - start
            for batch in self.batches()(0):
                start = time.perf_counter()
                read(batch)
                spent += time.perf_counter() - start
        return spent

    def _reader(self, taps: Sequence[Tap]) -> Reader:
        return network_reader(self.teacher, taps, self.batches().example_inputs(), ENGINE)[0]


def main() -> None:
    """Print the table of the repetitions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images + 20, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(options.images + 20) % 10
    held_out = images[-20:], labels[-20:]
    data = limbeck.arrays(images[:-20], labels[:-20], test_set=held_out, validation=0)
    bench, ratios = Bench(data, options.batch_size), []
    for repetition in range(options.repetitions):
        seconds, weights = bench.together()
        own = [bench.by_itself(block) for block in ARMS]
        teacher = bench.teacher_seconds()
        floor = sum(spent for spent, _ in own) + teacher
        same = all(
            all(torch.equal(value, other[name]) for name, value in one.items())
            for one, (_, other) in zip(weights, own, strict=True)
        )
        ratios.append(seconds / floor)
        print(
            f"{repetition + 1}: together {seconds:.1f} s; students {floor - teacher:.1f} s + teacher {teacher:.1f} s; "
            f"ratio {ratios[-1]:.3f}; weights {'identical' if same else 'DIFFER'}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f} (target: at most {TARGET})")


if __name__ == "__main__":
    main()
