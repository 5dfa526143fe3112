import pytest
import torch
from torch import nn

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.taps import Taps, check, evaluation_mode, shapes


class Block(nn.Module):
    def __init__(self, *, inplace=False, twice=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=inplace)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.twice = twice

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.act(x) if self.twice else x
        return self.head(self.pool(x))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.split = Split()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        first, second = self.split(x)
        return self.head(input=first + second)


class Split(nn.Module):
    def forward(self, x):
        return x, x


def batch(n=2):
    return Batch(torch.randn(n, 3, 8, 8), torch.arange(n), torch.arange(n) + 7, 3)


def read(network, *taps, **options):
    with Taps({"student": network}, taps, **options) as tapped:
        return tapped.read(batch())


def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_reads_outputs_inputs_and_the_batch():
    network, given = Block(), batch()
    taps = [Tap("student", "conv"), Tap("student", "head", "input"), Tap("student"), Tap("batch", "targets")]
    with Taps({"student": network}, taps, learns=["student"]) as tapped:
        values = tapped.read(given)
    network.eval()
    assert values[taps[0]].shape == (2, 4, 8, 8)
    assert values[taps[1]].shape == (2, 4)
    assert torch.equal(values[taps[2]], network.head(values[taps[1]]))
    assert values[taps[3]] is given.targets
    assert values[taps[2]].requires_grad


def test_reads_an_input_that_is_passed_by_keyword():
    with Taps({"student": Pair()}, [Tap("student", "head", "input")]) as tapped:
        values = tapped.read(Batch(torch.ones(2, 3), torch.zeros(2), torch.arange(2), 0))
    assert torch.equal(values[Tap("student", "head", "input")], torch.full((2, 3), 2.0))


def test_a_loss_may_run_a_tapped_layer_again():
    network = Block()
    with Taps({"student": network}, [Tap("student", "head", "input")]) as tapped:
        tapped.read(batch())
        for _ in range(2):  # outside of `read`, this is not one more run in the same forward
            assert network.head(torch.randn(2, 4)).shape == (2, 5)


def test_only_what_learns_gets_a_graph():
    networks = {"student": Block(), "teacher": Block()}
    with Taps(networks, [Tap("student"), Tap("teacher")], learns=["student"]) as tapped:
        values = tapped.read(batch())
    assert values[Tap("student")].requires_grad
    assert not values[Tap("teacher")].requires_grad


def test_a_misspelt_layer_names_the_near_ones():
    with pytest.raises(LimbeckError, match=r"no layer 'hed': did you mean head"):
        Taps({"student": Block()}, [Tap("student", "hed")])


def test_a_layer_with_nothing_near_lists_the_top_ones():
    with pytest.raises(LimbeckError, match=r"its top layers are conv, norm, act, pool, unused, head"):
        Taps({"student": Block()}, [Tap("student", "zzzzzz")])


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("teacher"), "no network 'teacher': allowed are student, batch"),
        (Tap("batch", "labels"), "the batch has no 'labels': allowed are inputs, targets, index"),
        (Tap("student", "head", "inside"), "allowed are 'output' and 'input'"),
    ],
)
def test_a_tap_to_nowhere_is_refused(tap, message):
    with pytest.raises(LimbeckError, match=message):
        Taps({"student": Block()}, [tap])


class Adding(Block):
    def forward(self, x):
        x = self.norm(self.conv(x))
        x += 1
        return self.head(self.pool(x))


def test_a_tensor_overwritten_in_place_is_refused():
    with pytest.raises(LimbeckError, match=r"student.norm was overwritten in place"):
        read(Adding(), Tap("student", "norm"), Tap("student"))


def test_the_dry_run_finds_an_overwriting_operation_behind_the_last_tap():
    with pytest.raises(LimbeckError, match=r"student.norm was overwritten in place"):
        shapes({"student": Adding()}, [Tap("student", "norm")], batch())


def test_an_activation_that_works_in_place_leaves_the_tensor_before_it_and_the_numbers_as_they_are():
    network, plain = Block(inplace=True), Block()
    plain.load_state_dict(network.state_dict())
    taps = Tap("student", "norm"), Tap("student")
    torch.manual_seed(0)
    got = read(network, *taps)
    torch.manual_seed(0)
    wanted = read(plain, *taps)
    assert all(torch.equal(got[tap], wanted[tap]) for tap in taps)
    assert network.act.inplace is True


@pytest.mark.parametrize("run", [0, 1])
def test_one_run_of_a_module_that_runs_twice_can_be_named(run):
    network = Block(twice=True)
    seen = []
    network.act.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    tap = Tap("student", "act", "input", run)
    assert torch.equal(read(network, tap, Tap("student"))[tap], seen[run])
    assert not torch.equal(seen[0], seen[1])


def test_a_run_that_there_is_not_is_refused():
    with pytest.raises(LimbeckError, match=r"student.act \(input, run 2\) did not run"):
        read(Block(twice=True), Tap("student", "act", "input", 2), Tap("student"))


def test_a_module_that_runs_twice_is_refused():
    with pytest.raises(LimbeckError, match=r"student.act ran twice"):
        read(Block(twice=True), Tap("student", "act"), Tap("student"))


def test_the_dry_run_finds_a_second_run_behind_the_last_tap():
    with pytest.raises(LimbeckError, match=r"student.act ran twice"):
        shapes({"student": Block(twice=True)}, [Tap("student", "act")], batch())


def test_a_module_that_never_runs_is_refused():
    with pytest.raises(LimbeckError, match=r"student.unused did not run"):
        read(Block(), Tap("student", "unused"))


def test_a_module_that_gives_several_tensors_is_refused():
    with pytest.raises(LimbeckError, match=r"student.split is a tuple, not one tensor"):
        read(Pair(), Tap("student", "split"))


def test_hooks_are_removed_afterwards():
    network = Block()
    read(network, Tap("student", "conv"), Tap("student", "head", "input"))
    assert hooks(network) == 0


def test_hooks_are_removed_after_an_error():
    network = Block(twice=True)
    with pytest.raises(LimbeckError):
        read(network, Tap("student", "act"), Tap("student"))
    assert hooks(network) == 0


def test_the_forward_stops_after_the_last_tap():
    network = Block()
    ran = []
    network.head.register_forward_pre_hook(lambda *_: ran.append("head"))
    before = network.norm.running_mean.clone()
    read(network, Tap("student", "conv"))
    assert ran == []
    assert torch.equal(network.norm.running_mean, before)


def test_the_forward_goes_to_the_end_where_the_output_is_read():
    network = Block()
    before = network.norm.running_mean.clone()
    read(network, Tap("student", "conv"), Tap("student"))
    assert not torch.equal(network.norm.running_mean, before)


def test_a_network_that_is_not_read_does_not_run():
    teacher, ran = Block(), []
    teacher.register_forward_pre_hook(lambda *_: ran.append("teacher"))
    with Taps({"student": Block(), "teacher": teacher}, [Tap("student")]) as tapped:
        tapped.read(batch())
    assert ran == []


def test_the_dry_run_gives_shapes_and_leaves_everything_as_it_was():
    network = Block()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = shapes({"student": network}, [Tap("student", "conv"), Tap("student")], batch())
    assert found == {Tap("student", "conv"): (4, 8, 8), Tap("student"): (5,)}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not network.norm.training


def test_a_tensor_that_has_no_row_a_sample_is_refused_by_the_dry_run():
    network = nn.Sequential(nn.Flatten(0), nn.Linear(2 * 3 * 8 * 8, 5))
    with pytest.raises(LimbeckError, match=r"student has shape \(5,\) for 2 samples, needed are 2 rows"):
        shapes({"student": network}, [Tap("student")], batch())


def test_evaluation_mode_is_undone_after_an_error():
    network = Block()
    seen = []
    with pytest.raises(ZeroDivisionError), evaluation_mode([network]):
        seen.append(network.head.training or 1 / 0)
    assert seen == []
    assert all(module.training for module in network.modules())


def test_a_tap_reads_like_a_path():
    assert str(Tap("student", "stage1.0", "input")) == "student.stage1.0 (input)"
    assert str(Tap("teacher")) == "teacher"


# --- TorchScript, and forwards under inference_mode


class Serving(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

    @torch.inference_mode()
    def forward(self, inputs):
        return self.network(inputs)


@pytest.mark.parametrize("layer", ["", "network.0"])
def test_what_a_forward_under_inference_mode_gives_can_be_learnt_from(layer):
    inputs, network = torch.randn(2, 4), Serving()
    tap = Tap("teacher", layer)
    with Taps({"teacher": network}, [tap]) as tapped:
        value = tapped.read(Batch(inputs, torch.zeros(2).long(), torch.arange(2), 0))[tap]
    assert not value.is_inference()
    student = torch.randn(2, 3, requires_grad=True)
    (student * value).sum().backward()
    assert torch.equal(student.grad, value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tap", [Tap("teacher", "1"), Tap("teacher", "1.0"), Tap("teacher", "1", "input")])
def test_a_layer_inside_torchscript_is_refused_and_one_beside_it_is_read(tap):
    inside = torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    networks = {"teacher": nn.Sequential(nn.Linear(4, 4), inside)}
    with pytest.raises(LimbeckError, match="cannot be read because 1 is TorchScript, which only exposes its output"):
        check(networks, tap)
    found = shapes(networks, [Tap("teacher", "0"), Tap("teacher")], Batch(torch.randn(2, 4), None, torch.arange(2), 0))
    assert found == {Tap("teacher", "0"): (4,), Tap("teacher"): (3,)}
