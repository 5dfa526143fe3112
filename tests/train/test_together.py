import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core import Batch, LimbeckError, Stage, Tap, Term, from_student, from_teacher
from limbeck.train.engine import make_engine
from limbeck.train.loop import Epoch, Pause, run, turns
from limbeck.train.together import SharedBatches, SharedReaders, groups, together

ENGINE = make_engine(device="cpu", precision="32")


class Source:
    """Three batches an epoch, of which each pass is counted."""

    samples = 12

    def __init__(self):
        self.passes = []

    def __len__(self):
        return 3

    def __call__(self, epoch):
        self.passes.append(epoch)
        for number in range(3):
            generator = torch.Generator().manual_seed(100 * epoch + number)
            inputs = torch.randn(4, 3, 8, 8, generator=generator)
            yield Batch(inputs, torch.arange(4) % 3, torch.arange(4), epoch)

    def sweep(self):
        return self(0)

    def example_inputs(self):
        return next(Source()(0)).inputs[:2]


class Counted(nn.Sequential):
    """A teacher of which copies count the forwards of all."""

    runs = 0

    def forward(self, inputs):
        Counted.runs += len(inputs) == 4
        return super().forward(inputs)


def network(kind=nn.Sequential):
    return kind(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


HARD = Term(F.cross_entropy, (from_student(), Tap("batch", "targets")))


def mimic(layer):
    return Term(F.mse_loss, (from_student(layer), from_teacher(layer)))


def stage(name, epochs, **terms):
    return Stage(name, terms, epochs, lambda ps: torch.optim.SGD(ps, lr=0.1), lambda progress: 1.0, ("student",))


ARMS = {
    "alone": [stage("alone", 3, hard=HARD)],
    "logits": [stage("logits", 3, hard=HARD, soft=mimic(""))],
    "maps": [stage("maps", 3, hard=HARD, maps=mimic("2"))],
    "two": [stage("hints", 2, hints=mimic("0")), stage("both", 3, hard=HARD, soft=mimic(""))],
    "longer": [stage("longer", 5, hard=HARD)],
}


def teacher():
    torch.manual_seed(7)
    made = network(Counted).eval()
    made[1].running_mean.normal_()
    return made.requires_grad_(False)


@pytest.fixture(autouse=True)
def no_runs():
    Counted.runs = 0


def started(arm, guide):
    torch.manual_seed(1)
    return {"student": network(), "teacher": guide}, ARMS[arm]


def by_itself(arm):
    nets, stages = started(arm, teacher())
    losses = [epoch.loss for epoch in run(stages, nets, Source(), ENGINE)]
    return losses, nets["student"].state_dict()


def all_together(arms):
    """The losses and weights of each arm, and the order of the batches."""
    readers, found, order, source = SharedReaders(), {}, [], Source()
    shared, guide = SharedBatches(source), teacher()

    def training(arm):
        nets, stages = started(arm, guide)
        losses = []
        for event in turns(stages, nets, shared, ENGINE, reader=readers):
            if isinstance(event, Pause):
                order.append((arm, event))
                yield event
            else:
                losses.append(event.loss)
                yield (arm, event)
        found[arm] = losses, nets["student"].state_dict()

    events = list(together([training(arm) for arm in arms], ENGINE))
    assert all(isinstance(event, Epoch) for _, event in events)
    return found, order, source


def test_students_that_are_trained_together_get_the_bits_that_each_gets_by_itself():
    expected = {arm: by_itself(arm) for arm in ARMS}
    found, _, _ = all_together(ARMS)
    for arm, (losses, weights) in expected.items():
        assert found[arm][0] == losses, arm
        assert all(torch.equal(found[arm][1][name], value) for name, value in weights.items()), arm


def test_the_teacher_runs_once_for_each_batch_that_several_students_read():
    all_together(["logits", "maps"])
    assert Counted.runs == 3 * 3
    Counted.runs = 0
    all_together(["alone", "logits", "maps", "two"])
    assert Counted.runs == 3 * 3 + 2 * 3  # and the batches of the stage of hints


def test_all_students_reach_their_last_stage_before_one_begins_it():
    _, order, source = all_together(["logits", "two"])
    stages = [pause.stage for _, pause in order[2:]]
    assert stages == sorted(stages)
    assert len(source.passes) <= 2 + 3 + 1


def test_a_layer_that_prevents_folding_for_one_student_is_not_shared():
    """The input of the BatchNorm cannot be read from a copy in which it is folded."""
    expected = {arm: by_itself(arm) for arm in ("logits", "two")}
    found, _, _ = all_together(["logits", "two"])
    assert found["two"][0] == expected["two"][0]
    assert found["logits"][0] == expected["logits"][0]


class Copies(nn.Sequential):
    """A network that autograd lets others change the inputs of."""

    def forward(self, inputs):
        return super().forward(inputs * 1.0)


class Doubles(Copies):
    """A network that writes to its inputs."""

    def forward(self, inputs):
        return super().forward(inputs.mul_(2))


def squares_the_target(student, guide):
    return F.mse_loss(student, guide.square_())


@pytest.mark.parametrize("writes", ["student", "teacher", "loss"])
def test_what_writes_to_a_batch_or_to_the_tensors_of_the_teacher_changes_no_other_student(writes):
    term = Term(squares_the_target, (from_student(), from_teacher())) if writes == "loss" else mimic("")
    stages = [stage("all", 2, hard=HARD, soft=term)]
    kinds = {"student": Copies, "teacher": nn.Sequential} | ({writes: Doubles} if writes != "loss" else {})

    def networks(guide):
        torch.manual_seed(1)
        return {"student": network(kinds["student"]), "teacher": guide}

    def guide():
        torch.manual_seed(7)
        return network(kinds["teacher"]).eval().requires_grad_(False)

    alone = networks(guide())
    for _ in run(stages, alone, Source(), ENGINE):
        pass
    shared, readers, one = SharedBatches(Source()), SharedReaders(), guide()
    students = []

    def training():
        nets = networks(one)
        students.append(nets["student"])
        yield from turns(stages, nets, shared, ENGINE, reader=readers)

    list(together([training() for _ in range(3)], ENGINE))
    for student in students:
        for name, value in alone["student"].state_dict().items():
            assert torch.equal(value, student.state_dict()[name]), name


def test_the_seconds_of_an_epoch_are_without_those_of_other_students():
    nets, stages = started("alone", teacher())
    for event in turns(stages, nets, Source(), ENGINE):
        if isinstance(event, Pause):
            time.sleep(0.05)
        else:
            assert event.seconds < 4 * 0.05


def test_copies_that_no_stage_reads_any_more_are_not_kept():
    """A frozen network that changes is copied again in each epoch."""
    readers, one = SharedReaders(), teacher()
    for _ in range(3):
        one[6].bias += 1
        read, _ = readers(one, [Tap("teacher")], Source().example_inputs(), ENGINE)
        read(next(Source()(0)))
    assert len(readers._shared) == 2


def test_copies_whose_buffers_differ_are_not_shared():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, inputs):
            return self.scale * inputs

    readers, one, batch = SharedReaders(), Scaled(), next(Source()(0))
    first, _ = readers(one, [Tap("teacher")], batch.inputs, ENGINE)
    one.scale += 1
    second, _ = readers(one, [Tap("teacher")], batch.inputs, ENGINE)
    assert torch.equal(first(batch)[Tap("teacher")], batch.inputs)
    assert torch.equal(second(batch)[Tap("teacher")], 2 * batch.inputs)


def test_an_autocast_around_them_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(LimbeckError, match="leave it first"):
        next(together([], ENGINE), None)


def test_trainings_are_closed_if_one_fails():
    closed = []

    def endless():
        try:
            while True:
                yield Pause(0, 5, 0)
        finally:
            closed.append(True)

    def fails():
        yield Pause(0, 0, 0)
        raise ValueError("fails")

    with pytest.raises(ValueError, match="fails"):
        list(together([endless(), fails()], ENGINE))
    assert closed == [True]


def test_a_training_that_is_left_behind_reads_a_stream_of_its_own():
    source = Source()
    shared = SharedBatches(source)
    ahead, behind = shared(2), shared(2)
    first = [next(ahead), next(behind)]
    assert first[0] is first[1]
    later = [next(ahead), next(ahead), next(behind)]
    torch.testing.assert_close(later[2].inputs, later[0].inputs, rtol=0, atol=0)
    assert next(behind).inputs.equal(later[1].inputs)
    assert next(ahead, None) is None
    assert next(behind, None) is None
    assert source.passes == [2, 2]


@pytest.mark.parametrize(
    ("sizes", "free", "expected"),
    [
        ([3, 3, 3], 20, [[0, 1, 2]]),
        ([3, 3, 3], 13, [[0, 1], [2]]),
        ([9, 1, 1, 9], 10, [[0], [1, 2], [3]]),
        ([], 10, []),
    ],
)
def test_as_many_students_are_trained_together_as_fit_into_half_of_the_memory(sizes, free, expected):
    assert groups(sizes, free) == expected
