"""What cannot be right is refused before any training, by name, and can be allowed."""

import copy
import dataclasses
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from limbeck.core import LimbeckError
from limbeck.data import arrays
from limbeck.data.split import Data, Split
from limbeck.evaluate import macs
from limbeck.experiment.checks import check_student, check_teacher, refuse_shared, unwrapped
from limbeck.experiment.first_step import first_step
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, Workspace, example_batch
from limbeck.methods import METHODS
from limbeck.models import Ensemble
from limbeck.models.outputs import install
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine

ENGINE = make_engine(device="cpu", precision="32")
CLASSES = ("cat", "dog", "eel", "fox")


def training(batch_size=16):
    return Training(epochs=2, batch_size=batch_size, optimizer=sgd(lr=0.1), schedule=constant())


def data(train=40, validation=80, test=8, classes=CLASSES):
    """A sample's class is the place of its greatest number."""

    def split(count, seed, name):
        targets = torch.arange(count) % len(classes)
        noise = torch.rand(count, len(classes), generator=torch.Generator().manual_seed(seed))
        names = tuple(f"{name}/{classes[target]}/{place}.png" for place, target in enumerate(targets.tolist()))
        return Split(noise + 2 * F.one_hot(targets, len(classes)), targets, names)

    splits = {
        "train": split(train, 0, "train"),
        "validation": split(validation, 1, "val"),
        "test": split(test, 2, "test"),
    }
    return Data(**splits, classes=classes, mean=(0.0,), std=(1.0,))


class Gives(nn.Module):
    """A teacher that gives what is made of the inputs, which are good logits."""

    def __init__(self, make):
        super().__init__()
        self.make, self.scale = make, nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.make(inputs * self.scale)


def good(inputs):
    return inputs


def refused(make, key, *, given=None):
    """The message of a refusal; with its name allowed there is none, and a note."""
    given = given or data()
    with pytest.raises(LimbeckError) as caught:
        check_teacher(Gives(make), given, ENGINE)
    message = str(caught.value)
    assert f"--allow {key}" in message
    assert f"allow: [{key}]" in message
    assert f"allow=('{key}',)" in message
    return message


# --- teachers


def test_a_teacher_that_the_method_trains_need_not_know_the_classes_yet():
    skipped, note = check_teacher(Gives(lambda x: x.flip(0) * 0), data(), ENGINE, learns=True)
    assert (skipped.check, skipped.skipped) == ("input", True)
    assert note.said.endswith("before the method trains it")


def test_a_good_teacher_passes_without_a_note():
    assert check_teacher(Gives(good), data(), ENGINE) == []


def test_log_probabilities_are_logits():
    assert check_teacher(Gives(lambda x: x.log_softmax(1)), data(), ENGINE) == []


def test_a_weak_teacher_passes():
    assert check_teacher(Gives(lambda x: x + 4 * x.sin().roll(1, 1)), data(validation=400), ENGINE) == []


def test_nan_for_some_samples_names_network_sample_file_and_share():
    given = data()
    bad = given.validation.inputs[5]
    message = refused(lambda x: torch.where((x == bad).all(1, keepdim=True), torch.nan, x), "not_finite", given=given)
    expected = "the teacher returns NaN or infinite logits for 1 of 80 validation samples (1.2%), the first is number 5"
    assert message.startswith(f"{expected} (val/dog/5.png)")


def test_a_teacher_that_is_nan_everywhere_is_refused():
    assert "for all 80 validation samples" in refused(lambda x: x * torch.nan, "not_finite")
    found = check_teacher(Gives(lambda x: x * torch.nan), data(), ENGINE, allow=("not_finite",))
    assert "as allowed" in found[0].said


def test_probabilities_are_refused_with_the_key_that_describes_them():
    message = refused(lambda x: x.softmax(1), "probabilities")
    assert message.startswith("the teacher returns probabilities")
    assert "teacher: {output: probabilities}" in message
    assert 'teacher_output="probabilities"' in message


def test_an_output_that_is_drawn_is_refused():
    assert "different outputs in each run in eval mode" in refused(lambda x: F.dropout(x, 0.1), "random")


def test_permuted_classes_are_named_with_the_lines_that_describe_them():
    order = [2, 0, 3, 1]  # the teacher's class 0 is the data's 2
    message = refused(lambda x: x[:, order], "permuted")
    assert "its output 0 is the data's class 'eel', its output 1 is the data's class 'cat'" in message
    assert "its accuracy on 80 validation samples is 0.0% in this order and 100.0% in the data's order" in message
    assert (
        "in a recipe teacher: {classes: [2, 0, 3, 1]}, in Python teacher_classes=['eel', 'cat', 'fox', 'dog']"
        in message
    )


def test_two_classes_that_are_swapped_among_many_are_found():
    names = tuple(f"class {number}" for number in range(10))
    order = [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]
    message = refused(lambda x: x[:, order], "permuted", given=data(validation=200, classes=names))
    assert (
        "its output 3 is the data's class 'class 4', its output 4 is the data's class 'class 3'; its accuracy on"
        in message
    )


def test_a_permuted_teacher_is_not_allowed_by_allowing_chance():
    with pytest.raises(LimbeckError, match="another order"):
        check_teacher(Gives(lambda x: x.roll(1, 1)), data(), ENGINE, allow=("chance",))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (
            x.sin() @ torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) * 0 + torch.tensor([0, 9, 0, 0])
        ),
        lambda x: (x * 1e6).sin(),
    ],
    ids=["one class for all", "unrelated"],
)
def test_a_teacher_at_chance_is_refused_with_likely_causes(make):
    message = refused(make, "chance")
    assert message.index("normalisation") < message.index("in another order") < message.index("not its weights")
    assert "teacher_input=limbeck.Input(" in message
    assert "chance is 2" in message


def test_always_the_most_frequent_class_is_chance():
    given = data(validation=600)
    targets = torch.where(torch.arange(600) < 540, 0, given.validation.targets)
    uneven = Data(given.train, Split(given.validation.inputs, targets), given.test, CLASSES, (0.0,), (1.0,))
    message = refused(lambda x: x * 0 + torch.tensor([5.0, 0, 0, 0]), "chance", given=uneven)
    assert "chance is 9" in message


def test_a_teacher_below_chance_is_refused_on_few_samples():
    never = [[1, 2, 3, 0], [2, 3, 0, 1]]

    def make(x):  # never right, and in no order
        return torch.where((torch.arange(len(x)) % 8 < 4)[:, None], x[:, never[0]], x[:, never[1]])

    with pytest.raises(LimbeckError, match=r"lower than chance: 0\.0% of 18 validation samples"):
        check_teacher(Gives(make), data(validation=18), ENGINE)


@pytest.mark.parametrize("count", [6, 12])
def test_too_few_samples_tell_nothing_and_it_is_said(count):
    two = data(validation=count, classes=("cat", "dog"))
    found = check_teacher(Gives(lambda x: (x * 1e6).sin()), two, ENGINE)
    assert found[0].said.startswith(f"{count} validation samples are too few to tell whether the teacher is better")


def test_nine_of_ten_is_not_called_chance():
    two = data(validation=10, classes=("cat", "dog"))
    flipped = two.validation.inputs[3]
    found = check_teacher(Gives(lambda x: torch.where((x == flipped).all(1, keepdim=True), -x, x)), two, ENGINE)
    assert "too few" in found[0].said


def test_without_a_validation_split_the_numbers_are_looked_at_and_the_rest_is_noted():
    given = data(validation=0)
    assert "no validation split" in check_teacher(Gives(lambda x: x.roll(1, 1)), given, ENGINE)[0].said
    assert "probabilities" in refused(lambda x: x.softmax(1), "probabilities", given=given)


def test_a_look_at_a_teacher_leaves_generators_and_modes_alone():
    network, before = Gives(lambda x: F.dropout(x, 0.1)), torch.get_rng_state()
    check_teacher(network, data(), ENGINE, allow=("random", "chance"))
    assert network.training
    assert torch.equal(before, torch.get_rng_state())


# --- shared parts


def mlp(width=4, *norm):
    return nn.Sequential(nn.Linear(4, width), *norm, nn.ReLU(), nn.Linear(width, 4))


def test_a_shared_layer_is_named():
    teacher, student = mlp(), mlp()
    student[0] = teacher[0]
    with pytest.raises(
        LimbeckError, match=r"the student and the teacher share .*: student.0 \(Linear\) is teacher.0\. "
    ):
        refuse_shared({"student": student, "teacher": teacher})
    assert "as allowed" in refuse_shared({"student": student, "teacher": teacher}, allow=("shared",))[0].said


def tied(teacher, student):
    student[2].weight = teacher[2].weight


def viewed(teacher, student):
    student[2].weight = nn.Parameter(teacher[2].weight.detach().view(4, 4))


def buffered(teacher, student):
    for network in (teacher, student):
        network.register_buffer("scale", teacher.get_buffer("scale") if network is student else torch.ones(2))


def dropped(teacher, student):
    student.add_module("drop", nn.Dropout())
    teacher.add_module("drop", student.drop)


@pytest.mark.parametrize(
    ("share", "place"),
    [
        (tied, r"student\.2\.weight \(parameter\)"),
        (viewed, r"student\.2\.weight \(parameter\)"),
        (buffered, r"student\.scale \(buffer\)"),
        (dropped, r"student\.drop \(Dropout\)"),
    ],
)
def test_every_kind_of_shared_part_is_found(share, place):
    teacher, student = mlp(), mlp()
    share(teacher, student)
    with pytest.raises(LimbeckError, match=place):
        refuse_shared({"student": student, "teacher": teacher})


def test_a_student_inside_its_teacher_and_a_member_are_found():
    student = mlp()
    with pytest.raises(LimbeckError, match=r"student \(Sequential\) is teacher\.members\.1|teacher\.members\.1\.0"):
        refuse_shared({"student": student, "teacher": Ensemble([mlp(), student], "geometric")})


def test_a_shared_activation_and_members_of_one_ensemble_are_no_matter():
    teacher, student = mlp(), mlp()
    student[1] = teacher[1]
    member = mlp()
    assert refuse_shared({"student": student, "teacher": teacher}) == []
    assert refuse_shared({"student": student, "teacher": Ensemble([member, member], "geometric")}) == []


def test_two_names_for_one_network_are_refused_whatever_is_allowed():
    network = mlp()
    with pytest.raises(LimbeckError, match="the same module"):
        refuse_shared({"student": network, "teacher": network}, allow=("shared",))


# --- kinds of networks


def test_a_compiled_network_is_taken_out_of_it_and_it_is_said():
    network = mlp()
    found, looked = unwrapped("student", torch.compile(network))
    assert found is network
    assert "compiled by torch.compile" in looked[0]


def test_a_network_for_several_devices_is_refused():
    with pytest.raises(
        LimbeckError, match=r"the student is a DataParallel: pass the network inside it, its `\.module`"
    ):
        unwrapped("student", nn.DataParallel(mlp()))


def test_a_network_without_weights_is_refused():
    with pytest.raises(LimbeckError, match="meta device"):
        unwrapped("student", mlp().to("meta"))


# --- a real step


def run(method, networks, given=None, batch_size=16, **options):
    given, how = given or data(), training(batch_size)
    stages = plan(lambda setup: METHODS[method](setup, **options), networks, given, how)
    return first_step(stages, networks, Workspace(given, how, ENGINE))


def state(networks):
    return {f"{name}.{key}": value.clone() for name, one in networks.items() for key, value in one.state_dict().items()}


@pytest.mark.parametrize("method", ["alone", "kd", "class_distance", "mimic", "fitnets"])
def test_a_run_that_works_leaves_everything_as_it_was(method):
    names = ("student",) if method == "alone" else ("student", "teacher")
    networks = {name: mlp(5, nn.BatchNorm1d(5), nn.Dropout()) for name in names}
    networks["student"][1].eval()
    given, how = data(), training()
    stages = plan(METHODS[method], networks, given, how)
    before, generator = state(networks), torch.get_rng_state()
    assert first_step(stages, networks, Workspace(given, how, ENGINE)) == []
    after = state(networks)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not networks["student"][1].training
    assert networks["student"].training
    assert all(parameter.grad is None for parameter in networks["student"].parameters())
    assert not any(module._forward_hooks for network in networks.values() for module in network.modules())
    assert torch.equal(generator, torch.get_rng_state())


def test_batch_norm_and_batches_of_one_are_refused_with_what_helps():
    with pytest.raises(LimbeckError, match=r"step of 1 sample fails: the student .* use a batch_size of 2 or more"):
        run("alone", {"student": mlp(5, nn.BatchNorm1d(5))}, batch_size=1)


class Train(nn.Sequential):
    """Does something else in train mode."""

    def __init__(self, do):
        super().__init__(nn.Linear(4, 4))
        self.do = do

    def forward(self, inputs):
        return self.do(super().forward(inputs)) if self.training else super().forward(inputs)


def test_what_fails_only_in_train_mode_is_refused_and_named():
    with pytest.raises(LimbeckError, match=r"16 samples fails: the student does not run in train mode: .*IndexError"):
        run("alone", {"student": Train(lambda x: x[:, [7]])})


def test_a_size_that_only_the_real_batch_has_is_refused_and_named():
    def odd(x):
        return x if len(x) < 3 else x.view(3, 99)

    with pytest.raises(LimbeckError, match=r"16 samples fails: the teacher does not run in eval mode: RuntimeError"):
        run("kd", {"student": mlp(), "teacher": nn.Sequential(nn.Linear(4, 4), Gives(odd))})


class Serving(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = mlp()

    @torch.inference_mode()
    def forward(self, inputs):
        return self.network(inputs)


def test_a_student_whose_output_has_no_gradient_is_refused():
    with pytest.raises(LimbeckError, match="the output of the student has no gradient"):
        run("alone", {"student": Serving()})


def test_a_teacher_under_inference_mode_works():
    with torch.inference_mode():
        loaded = mlp()
    assert run("kd", {"student": mlp(), "teacher": Serving()}) == []
    assert run("kd", {"student": mlp(), "teacher": loaded}) == []


def test_a_student_made_under_inference_mode_is_refused_and_a_copy_learns():
    with torch.inference_mode():
        made = mlp()
    with pytest.raises(LimbeckError, match=r"weights were made under torch\.inference_mode.*copy\.deepcopy"):
        run("alone", {"student": made})
    assert run("alone", {"student": copy.deepcopy(made)}) == []
    with pytest.raises(LimbeckError, match=r"weights were made under torch\.inference_mode"):
        run("fitnets", {"student": made, "teacher": mlp()})


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.head(self.body(inputs).squeeze())


def test_a_network_that_cannot_take_one_sample_loses_only_what_is_measured_with_one():
    norm = mlp(5, nn.BatchNorm1d(5, track_running_stats=False))
    (note,) = run("alone", {"student": norm})
    assert "the student does not run on one sample, so its latency is not measured" in note
    assert macs(norm, (4,)) == 40
    assert run("alone", {"student": Squeezed()}) == []  # it runs, and only its output has another shape


def test_a_split_of_one_sample_must_be_run():
    with pytest.raises(LimbeckError, match="on one sample, the size of the last batch of the test split"):
        run("alone", {"student": Squeezed()}, data(test=1))


def test_a_split_of_501_samples_has_no_batch_of_one():
    assert run("alone", {"student": Squeezed()}, data(test=501)) == []


class Locked(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp(5, nn.BatchNorm1d(5)))
        self.lock = threading.Lock()


class StoreProgress(nn.Sequential):
    """A hook of a copy keeps its tensor in the network that was copied."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 4))
        self[0].register_forward_hook(lambda module, args, output: setattr(self, "kept", output))

    def forward(self, inputs):
        super().forward(inputs)
        return self[1](self.kept)


def pruned():
    network = mlp(5)
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


@pytest.mark.parametrize("make", [Locked, StoreProgress, pruned])
def test_a_student_that_cannot_simply_be_copied_is_tried_too_and_is_left_as_it_was(make):
    network = make()
    before = state({"student": network})
    assert run("alone", {"student": network}) == []
    assert all(torch.equal(before[key], value) for key, value in state({"student": network}).items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training


def test_a_student_that_cannot_be_saved_is_refused():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return "words"

        def set_extra_state(self, state):
            pass

    with pytest.raises(LimbeckError, match="the student's state cannot be saved to a file"):
        run("alone", {"student": Odd(4, 4)})


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_network_teaches_but_does_not_learn():
    quantised = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})
    with pytest.raises(LimbeckError, match="the student's 0 is quantised"):
        run("alone", {"student": quantised})
    (note,) = run("kd", {"student": mlp(), "teacher": quantised})
    assert note.startswith("the teacher's state cannot be saved to a file")


def test_a_teacher_that_is_nan_on_the_first_batch_is_refused():
    with pytest.raises(LimbeckError, match="NaN"):
        run("kd", {"student": mlp(), "teacher": Gives(lambda x: x * torch.nan)})


# --- TorchScript and torch.export


def scripted(network):
    return torch.jit.script(network)


def jit_traced(network):
    return torch.jit.trace(network, torch.randn(2, 4))


def exported(network):
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(network, (torch.randn(3, 4),), dynamic_shapes=dynamic).module()


KINDS = [scripted, jit_traced, exported]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_in_another_form_works_where_its_output_is_read(kind):
    assert run("kd", {"student": mlp(), "teacher": kind(mlp())}) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_in_another_form_is_refused_where_its_layers_are_read(kind):
    with pytest.raises(LimbeckError, match=r"TorchScript|needs the linear classifier|did not run"):
        run("mimic", {"student": mlp(), "teacher": kind(mlp())})
    with pytest.raises(LimbeckError, match=r"TorchScript|did not run"):
        run("kd", {"student": mlp(), "teacher": kind(mlp())}, teacher_layer="0")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [scripted, jit_traced])
def test_a_torchscript_student_learns(kind):
    assert run("kd", {"student": kind(mlp()), "teacher": mlp()}) == []


@pytest.mark.filterwarnings("ignore")
def test_an_exported_student_is_refused():
    with pytest.raises(LimbeckError, match="train"):
        run("alone", {"student": exported(mlp())})


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_compiled_is_refused_where_compiling_is_asked_for():
    engine = dataclasses.replace(ENGINE, compile=True)
    given, how = data(), training()
    networks = {"student": mlp(), "teacher": scripted(mlp())}
    stages = plan(METHODS["kd"], networks, given, how)
    with pytest.raises(LimbeckError, match="compile is true, but the teacher cannot be compiled: it is TorchScript"):
        first_step(stages, networks, Workspace(given, how, engine))
    first_step(stages, networks | {"teacher": mlp()}, Workspace(given, how, engine))


def test_data_that_is_given_as_arrays_is_tried_too():
    given = arrays(torch.randn(60, 4), torch.arange(60) % 4)
    assert run("kd", {"student": mlp(), "teacher": mlp()}, given) == []


@pytest.mark.parametrize(("end", "told"), [(nn.Softmax(1), True), (nn.Sigmoid(), True), (nn.LogSoftmax(1), False)])
def test_a_student_that_ends_in_a_softmax_is_a_note(end, told):
    network = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), end)
    notes = check_student(network, data())
    assert [f"the student ends in nn.{type(end).__name__}, but" in note.said for note in notes] == [True] * told


def test_a_student_may_end_in_a_softmax_that_is_declared_and_one_of_numbers_in_a_sigmoid():
    network = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1))
    install("student", network, example_batch(data()), 4, output="probabilities")
    assert check_student(network, data()) == []
    numbers = arrays(torch.rand(20, 4), torch.rand(20, 4), task="regression")
    assert check_student(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), numbers) == []
