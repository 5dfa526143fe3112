import copy
import pickle
from dataclasses import asdict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck.core import LimbeckError, Tap
from limbeck.evaluate import macs, parameters
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.simkd import Projection, simkd
from limbeck.models import build
from limbeck.models.reuse import Reuse, apply_reuse, find_reuse, projector
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

SHAPE = (3, 16, 16)
TRAINING = Training(epochs=2, batch_size=8, optimizer=sgd(lr=0.05), schedule=constant())
ENGINE = make_engine(device="cpu", precision="32")


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return limbeck.arrays(torch.randn(16, *SHAPE), torch.arange(16) % 4, classes=("a", "b", "c", "d"))


def network(name="resnet8", **options):
    return build(name, classes=4, shape=SHAPE, **options)


def transformer():
    return network("timm:vit_tiny_patch16_224", img_size=16, patch_size=4, depth=1)


def multilayer():
    return network("mlp", hidden=(8,))


def trained(student, teacher, data, **options):
    """The networks after the stage, its last epoch, and the stage."""
    networks = {"student": student, "teacher": teacher}
    (stage,) = plan(partial(simkd, **options), networks, data, TRAINING)
    *_, last = run((stage,), networks, training_batches(data, TRAINING, seed=0, engine=ENGINE), ENGINE)
    return networks, last, stage


def loop(projected, teacher):
    """The sum of squared differences, one number at a time."""
    pairs = zip(projected.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    return sum((p - t) ** 2 for p, t in pairs)


def maps(*shapes):
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def module(average="elements", **options):
    reuse = Reuse(layer="a", side="output", channels=3, outside=6, classifier="b", classes=4, **options)
    return Projection(projector(reuse), average=average).double()


@pytest.mark.parametrize(("average", "each"), [("elements", 1 / (4 * 6 * 16)), ("batch", 1 / 4)])
def test_is_the_formula_in_loops(average, each):
    torch.manual_seed(0)
    loss = module(average)
    student, teacher = maps((4, 3, 4, 4), (4, 6, 4, 4))
    expected = each * loop(loss.projector(student), teacher)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_the_larger_map_is_averaged_down_before_the_projector():
    torch.manual_seed(0)
    loss = module()
    student, teacher = maps((4, 3, 8, 4), (4, 6, 4, 8))
    expected = F.mse_loss(loss.projector(F.adaptive_avg_pool2d(student, 4)), F.adaptive_avg_pool2d(teacher, 4))
    assert loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_vectors_are_projected_as_they_are():
    torch.manual_seed(0)
    loss = module(places=False)
    student, teacher = maps((4, 3), (4, 6))
    assert loss(student, teacher).item() == pytest.approx(loop(loss.projector(student), teacher) / 24, rel=1e-12)


def test_has_the_right_gradient():
    torch.manual_seed(0)
    loss = module()
    student, teacher = maps((3, 3, 3, 3), (3, 6, 2, 3))
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, teacher), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    student, teacher = (leaf.requires_grad_() for leaf in maps((2, 3, 4, 4), (2, 6, 4, 4)))
    module()(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_reads_the_last_maps_and_no_label(data):
    (stage,) = plan(simkd, {"student": network(), "teacher": network("wrn_16_2")}, data, TRAINING)
    assert set(stage.terms) == {"feature"}
    assert stage.terms["feature"].reads == (Tap("student", "stage3"), Tap("teacher", "relu"))
    assert stage.terms["feature"].weight == 1.0


def test_planning_changes_nothing(data):
    networks = {"student": network(), "teacher": network("wrn_16_2")}
    before = {name: copy.deepcopy(one.state_dict()) for name, one in networks.items()}
    plan(simkd, networks, data, TRAINING)
    for name, one in networks.items():
        assert before[name].keys() == one.state_dict().keys()
        assert all(torch.equal(value, before[name][key]) for key, value in one.state_dict().items())
        assert one.training


def taller():
    """A student whose last map is larger than that of the zoo's networks."""
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 4))


@pytest.mark.parametrize("student", [network, partial(network, "wrn_16_1"), taller, partial(network, "convnet_small")])
def test_the_student_ends_with_the_projector_and_the_teachers_classifier(data, student):
    networks, last, stage = trained(student(), network("wrn_16_2"), data)
    loss, teacher = stage.terms["feature"].loss, networks["teacher"].eval()
    changed = networks["student"].eval()
    before = student()  # as it was built, with what it has learnt
    reuse = find_reuse(changed)
    learnt = {key.replace(f"{reuse.layer}.layer", reuse.layer): value for key, value in changed.state_dict().items()}
    kept = {key: value for key, value in learnt.items() if "projector" not in key and reuse.classifier not in key}
    before.load_state_dict(kept, strict=False)
    inputs = torch.randn(5, *SHAPE)
    seen = []
    tapped = before.eval().get_submodule(reuse.layer)
    if reuse.side == "output":
        tapped.register_forward_hook(lambda module, args, output: seen.append(output))
    else:
        tapped.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        before(inputs)
        read = seen[0] if seen[0].dim() == 2 else F.adaptive_avg_pool2d(seen[0], min(seen[0].shape[2], 4))
        feature = loss.projector.eval()(read)
        expected = teacher.head(feature if feature.dim() == 2 else feature.mean((2, 3)))
        torch.testing.assert_close(changed(inputs), expected)
    assert last.number == 2


def test_the_larger_student_map_is_averaged_down_in_the_deployed_student_too(data):
    networks, _, _ = trained(taller(), network(), data)
    assert find_reuse(networks["student"]).size == [4, 4]
    networks, _, _ = trained(network(), network("wrn_16_1"), data)
    assert find_reuse(networks["student"]).size is None


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(multilayer, network), (network, multilayer), (transformer, network), (network, transformer)],
)
def test_features_are_projected_where_a_last_map_is_not_what_is_pooled(data, student, teacher):
    networks, _, stage = trained(student(), teacher(), data)
    reads = stage.terms["feature"].reads
    assert [tap.side for tap in reads] == ["input", "input"]
    kinds = {type(layer) for layer in stage.terms["feature"].loss.projector}
    assert kinds == {nn.Linear, nn.BatchNorm1d, nn.ReLU}
    assert isinstance(stage.terms["feature"].loss.projector[-1], nn.BatchNorm1d)
    assert networks["student"].eval()(torch.randn(3, *SHAPE)).shape == (3, 4)
    assert isinstance(networks["student"].head.projector, nn.Sequential)


def test_learns_to_give_the_teachers_answers(data):
    """With the teacher's own weights in the student, the projector alone has to learn; agreement follows."""
    teacher = network()
    student = copy.deepcopy(teacher)
    training = Training(epochs=60, batch_size=16, optimizer=sgd(lr=0.3, momentum=0.9), schedule=constant())
    networks = {"student": student, "teacher": teacher}
    batches = training_batches(data, training, seed=0, engine=ENGINE)
    epochs = list(run(plan(simkd, networks, data, training), networks, batches, ENGINE))
    assert epochs[-1].terms["feature"] < 0.1 * epochs[0].terms["feature"]


def test_the_teacher_stays_as_it_was(data):
    teacher = network("wrn_16_2")
    before = copy.deepcopy(teacher.state_dict())
    networks, _, _ = trained(network(), teacher, data)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert networks["student"].head.weight is not teacher.head.weight
    with torch.no_grad():
        networks["student"].head.weight.zero_()
    assert teacher.head.weight.any()


def test_the_deployed_student_counts_all_that_it_is(data):
    student = network()
    own = parameters(student) - parameters(student.head)
    work = macs(student, SHAPE) - 64 * 4
    networks, _, _ = trained(student, network("wrn_16_2"), data)
    kernels = 64 * 64 + 9 * 64 * 64 + 64 * 128
    assert parameters(networks["student"]) == own + kernels + 2 * (64 + 64 + 128) + (128 + 1) * 4
    assert macs(networks["student"], SHAPE) == work + 16 * kernels + 128 * 4


def test_finishing_again_changes_nothing(data):
    networks, _, stage = trained(network(), network("wrn_16_2"), data)
    before = copy.deepcopy(networks["student"].state_dict())
    stage.finish()
    after = networks["student"].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_the_student_is_kept_by_pickle_copy_and_options(data):
    networks, _, _ = trained(network(), network("wrn_16_2"), data)
    student = networks["student"].eval()
    inputs = torch.randn(3, *SHAPE)
    rebuilt = network()
    apply_reuse(rebuilt, Reuse(**asdict(find_reuse(student))))
    rebuilt.load_state_dict(student.state_dict())
    for other in (pickle.loads(pickle.dumps(student)), copy.deepcopy(student), rebuilt.eval()):
        assert torch.equal(other(inputs), student(inputs))


def test_a_run_that_goes_on_ends_with_the_same_student(data):
    def networks():
        torch.manual_seed(7)
        return {"student": network(), "teacher": network("wrn_16_2")}

    def end(state=None, stop=None):
        given = networks()
        stages = plan(simkd, given, data, TRAINING)
        batches = training_batches(data, TRAINING, seed=0, engine=ENGINE)
        for epoch in run(stages, given, batches, ENGINE, state=state):
            if epoch.number == stop:
                return copy.deepcopy(epoch.state())
        return given["student"].state_dict()

    straight = end()
    for stop in (1, 2):
        resumed = end(state=end(stop=stop))
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(value, straight[key]) for key, value in resumed.items())


def test_a_classifier_without_bias_is_taken_over(data):
    teacher = network()
    teacher.head = nn.Linear(64, 4, bias=False)
    networks, _, _ = trained(network(), teacher, data)
    assert networks["student"].head.bias is None
    assert torch.equal(networks["student"].head.weight, teacher.head.weight)


def test_the_last_relu_can_be_chosen(data):
    for final_relu, kind in ((True, nn.ReLU), (False, nn.BatchNorm2d), (None, nn.ReLU)):
        networks, _, _ = trained(network(), network("wrn_16_2"), data, final_relu=final_relu, factor=4)
        projector_ = networks["student"].stage3.projector
        assert isinstance(projector_[-1], kind)
        assert projector_[0].out_channels == 32


def test_a_factor_below_one_is_refused(data):
    with pytest.raises(LimbeckError, match="factor is 0: it must be at least 1"):
        plan(partial(simkd, factor=0), {"student": network(), "teacher": network()}, data, TRAINING)


def test_a_weight_of_zero_is_refused(data):
    with pytest.raises(LimbeckError, match="feature are all 0"):
        plan(partial(simkd, feature=0.0), {"student": network(), "teacher": network()}, data, TRAINING)


def test_a_student_that_has_a_teachers_classifier_is_refused(data):
    networks, _, _ = trained(network(), network("wrn_16_2"), data)
    with pytest.raises(LimbeckError, match="already has a teacher's classifier: build a new student"):
        plan(simkd, networks, data, TRAINING)


class Scaled(nn.Linear):
    """More than a linear layer."""

    def forward(self, inputs):
        return 10 * super().forward(inputs)


def test_a_teachers_classifier_that_is_no_plain_linear_layer_is_refused(data):
    teacher = network()
    teacher.head = Scaled(64, 4)
    with pytest.raises(
        LimbeckError, match="needs a teacher with a plain linear classifier, but the teacher's head is a Scaled"
    ):
        plan(simkd, {"student": network(), "teacher": teacher}, data, TRAINING)


class Twice(nn.Module):
    """Its last map comes from a module's second run."""

    def __init__(self, width=6):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(width, 4)

    def forward(self, inputs):
        maps = self.relu(self.two(self.relu(self.one(inputs))))
        return self.head(maps.mean((2, 3)))


def test_a_last_map_from_a_layer_that_runs_twice_is_refused(data):
    with pytest.raises(LimbeckError, match=r"after the student's last map, but student.relu .* runs more than once"):
        plan(simkd, {"student": Twice(), "teacher": network()}, data, TRAINING)


class Counting(nn.Module):
    """Its forward relies on the channels of its last map."""

    def __init__(self):
        super().__init__()
        self.body = network().stem
        self.more = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, inputs):
        return self.head(self.more(self.body(inputs)).view(-1, 16, 16 * 16).mean(2))


def test_a_student_that_does_not_run_with_a_projector_is_refused(data):
    with pytest.raises(
        LimbeckError, match="projector at the student's layer more, with which it does not run: RuntimeError"
    ):
        plan(simkd, {"student": Counting(), "teacher": network()}, data, TRAINING)


def test_one_sample_has_no_statistics_for_features(data):
    training = Training(epochs=1, batch_size=1, optimizer=sgd(lr=0.1), schedule=constant())
    with pytest.raises(LimbeckError, match=r"simkd applies a BatchNorm to .*, which needs at least 2 samples"):
        plan(simkd, {"student": multilayer(), "teacher": network()}, data, training)
