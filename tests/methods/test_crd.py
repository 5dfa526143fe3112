import math
from functools import partial

import pytest
import torch

from limbeck.core import TARGETS, LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.crd import MemoryContrast, crd
from limbeck.methods.crd_in_batch import BatchContrast, crd_in_batch
from limbeck.methods.kd import soft_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

DATA = arrays(torch.rand(60, 3, 16, 16), torch.arange(60) % 4)
TRAINING = Training(epochs=2, batch_size=16, optimizer=sgd(lr=0.01), schedule=constant())
ENGINE = make_engine(device="cpu", precision="32")
CLASSES = torch.tensor([0] * 7 + [1] * 3 + [2] * 6)


def pair():
    names = {"student": "resnet8", "teacher": "resnet14"}
    return {role: build(name, classes=4, shape=(3, 16, 16)) for role, name in names.items()}


def planned(method=crd, networks=None, data=DATA, **options):
    (stage,) = plan(partial(method, **options), networks or pair(), data, TRAINING)
    return stage


def contrast(targets=CLASSES, **options):
    given = {"negatives": 4, "embedding": 3, "temperature": 0.5} | options
    return MemoryContrast(5, 6, targets, **given).double()


def features(n=4):
    return torch.randn(n, 5, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)


def places(n=4):
    """Samples, and for each as many negatives as `contrast` has, of other classes."""
    return torch.tensor([0, 8, 10, 15][:n]), torch.tensor(
        [[7, 9, 12, 15], [0, 1, 2, 15], [0, 1, 7, 8], [3, 3, 9, 4]][:n]
    )


def embedded(linear, row):
    values = [sum(w * x for w, x in zip(line, row, strict=True)) for line in linear.weight.tolist()]
    values = [value + bias for value, bias in zip(values, linear.bias.tolist(), strict=True)]
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def loop(module, student, teacher, index, negatives, before=(None, None)):
    """Both directions one number at a time; the loss, the two Z, and the two memories afterwards."""
    samples, count = len(module.targets), negatives.shape[1]
    plain = module.normaliser == "none"
    rate = count / samples
    memories = [module.student_memory.tolist(), module.teacher_memory.tolist()]
    sides = [
        [embedded(layer.linear, row) for row in given.tolist()]
        for layer, given in ((module.student, student), (module.teacher, teacher))
    ]
    total, constants = 0.0, []
    for anchors, memory, known in zip(sides, (memories[1], memories[0]), before, strict=True):
        rows = [[own, *others] for own, others in zip(index.tolist(), negatives.tolist(), strict=True)]
        scores = [
            [math.exp(dot(anchor, memory[place]) / module.temperature) for place in row]
            for anchor, row in zip(anchors, rows, strict=True)
        ]
        mean = sum(map(sum, scores)) / (len(scores) * (count + 1))
        constants.append(1.0 if plain else known or mean * samples)
        epsilon = 0.0 if plain else 1e-7
        for row in scores:
            own, *others = (score / constants[-1] for score in row)
            total -= math.log(own / (own + rate + epsilon))
            total -= sum(math.log(rate / (score + rate + epsilon)) for score in others)
    for memory, anchors in zip(memories, sides, strict=True):
        for place, anchor in zip(index.tolist(), anchors, strict=True):
            mixed = [
                module.momentum * a + (1 - module.momentum) * b for a, b in zip(memory[place], anchor, strict=True)
            ]
            memory[place] = [value / math.sqrt(dot(mixed, mixed)) for value in mixed]
    return total / len(index), constants, memories


@pytest.mark.parametrize("normaliser", ["first_batch", "none"])
@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(normaliser, n):
    module = contrast(normaliser=normaliser, momentum=0.7)
    given = *features(n), *places(n)
    wanted, constants, memories = loop(module, *given)
    assert module(*given).item() == pytest.approx(wanted, rel=1e-10)
    assert module.log_normalisers.exp().tolist() == pytest.approx(constants, rel=1e-10)
    for memory, after in zip((module.student_memory, module.teacher_memory), memories, strict=True):
        torch.testing.assert_close(memory, torch.tensor(after, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(module.student_memory[places(n)[0]].norm(dim=1), torch.ones(n, dtype=torch.float64))


def test_the_normalisers_are_those_of_the_first_batch():
    module = contrast()
    given = *features(), *places()
    _, constants, _ = loop(module, *given)
    module(*given)
    given = *features(2), *places(2)
    wanted, _, _ = loop(module, *given, before=constants)
    assert module(*given).item() == pytest.approx(wanted, rel=1e-10)
    assert module.log_normalisers.exp().tolist() == pytest.approx(constants, rel=1e-10)


@pytest.mark.parametrize("how", ["no gradient", "eval mode"])
def test_nothing_is_kept_outside_of_training(how):
    module = contrast()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    given = *features(), *places()
    with torch.set_grad_enabled(how == "eval mode"):
        value = module.train(how != "eval mode")(*given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert value.item() == module.train()(*given).item()
    assert not torch.equal(module.student_memory, before["student_memory"])


def test_the_gradient_is_that_of_the_value():
    module = contrast()
    student, teacher = features()
    weights = module.student.linear.weight, module.teacher.linear.weight
    module.eval()  # nothing changes between the evaluations
    assert torch.autograd.gradcheck(
        lambda s, *_: _fixed(module)(s, teacher, *places()), (student.requires_grad_(), *weights)
    )


def _fixed(module):
    """With Z known, because it is a constant for the gradient."""
    module.log_normalisers = torch.tensor([2.0, 3.0], dtype=torch.float64)
    return module


def test_both_embeddings_learn_and_the_teacher_gets_no_gradient():
    module = contrast()
    student, teacher = (tensor.requires_grad_() for tensor in features())
    module(student, teacher, *places()).backward()
    assert teacher.grad is None
    assert student.grad.abs().min() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_ignores_the_order_of_samples_and_of_their_negatives():
    module = contrast().eval()
    student, teacher = features()
    index, negatives = places()
    order, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([3, 1, 0, 2])
    moved = module(student[order], teacher[order], index[order], negatives[order][:, columns])
    assert moved.item() == pytest.approx(module(student, teacher, index, negatives).item(), rel=1e-12)


def test_maps_are_flattened():
    module = MemoryContrast(12, 6, CLASSES, negatives=4, embedding=3).double().eval()
    student, teacher = torch.randn(4, 3, 2, 2, dtype=torch.float64), features()[1]
    value = module(student, teacher, *places())
    assert value.item() == module(student.flatten(1), teacher, *places()).item()


def test_equal_and_huge_features_give_finite_gradients():
    for student in (torch.zeros(4, 5), 1e3 * torch.ones(4, 5)):
        module = MemoryContrast(5, 6, CLASSES, negatives=4, embedding=3, temperature=0.001)
        value = module(student.requires_grad_(), 1e3 * torch.ones(4, 6), *places())
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
        assert module.student_memory.isfinite().all()


@pytest.mark.parametrize("negatives", [1, 5, 9])
def test_negatives_are_others_of_other_classes_without_replacement(negatives):
    """Nine are all the others of the first class."""
    module = contrast(negatives=negatives)
    index = torch.arange(16).repeat(20)
    drawn = module.draw(index)
    assert drawn.shape == (320, negatives)
    assert (CLASSES[drawn] != CLASSES[index][:, None]).all()
    assert all(len(set(row)) == negatives for row in drawn.tolist())


def test_negatives_are_drawn_with_replacement_where_the_others_are_too_few():
    module = contrast(negatives=10)
    index = torch.arange(16).repeat(20)
    drawn = module.draw(index)
    assert drawn.shape == (320, 10)
    assert (CLASSES[drawn] != CLASSES[index][:, None]).all()
    assert any(len(set(row)) < 10 for row in drawn.tolist())


@pytest.mark.parametrize("negatives", [4, 40])
def test_every_sample_of_another_class_is_drawn_as_often(negatives):
    module = contrast(negatives=negatives)
    for place, others in ((0, 9), (8, 13), (15, 10)):
        draws = [module.draw(torch.tensor([place])) for _ in range(1500)]
        share = torch.cat(draws).flatten().bincount(minlength=16) / (1500 * negatives)
        same = CLASSES.eq(CLASSES[place])
        assert (share[~same] * others - 1).abs().max() < 5 * math.sqrt(others / (1500 * negatives))
        assert share[same].sum() == 0


def test_draws_follow_the_global_generator():
    module, drawn = contrast(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(module.draw(torch.arange(16)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_samples_of_a_batch_differ_in_their_negatives():
    module = contrast(negatives=3)
    rows = {tuple(sorted(row)) for row in module.draw(torch.zeros(20, dtype=torch.int64)).tolist()}
    assert len(rows) > 5


def test_the_state_holds_the_memories_and_the_normalisers():
    module, other = contrast(), contrast()
    module(*features(), *places())
    other.load_state_dict(module.state_dict())
    given = *features(), *places()
    assert other(*given).item() == module(*given).item()
    assert {"student_memory", "teacher_memory", "log_normalisers"} <= set(module.state_dict())
    assert "targets" not in module.state_dict()


def test_a_run_that_is_resumed_gives_the_same_bits():
    def trained(split):
        torch.manual_seed(3)
        networks = pair()
        stages = [planned(networks=networks, negatives=20)]
        torch.manual_seed(4)
        batches = training_batches(DATA, TRAINING, seed=0, engine=ENGINE)
        epochs = run(stages, networks, batches, ENGINE)
        if split:
            state = next(epochs).state()
            torch.manual_seed(3)
            networks = pair()
            torch.manual_seed(5)
            stages = [planned(networks=networks, negatives=20)]
            epochs = run(stages, networks, batches, ENGINE, state=state)
        last = list(epochs)[-1]
        return last.terms["contrast"], networks["student"].state_dict(), stages[0].terms["contrast"].loss.student_memory

    (value, student, memory), (other, resumed, remembered) = trained(False), trained(True)
    assert value == other
    assert torch.equal(memory, remembered)
    assert all(torch.equal(student[name], resumed[name]) for name in student)


def test_a_sample_that_is_twice_in_a_batch_gets_the_row_of_its_first_place():
    module, (student, teacher) = contrast(), features(3)
    negatives = places(3)[1]
    before = module.student_memory.clone()
    module(student, teacher, torch.tensor([5, 0, 5]), negatives)
    anchors = module.student(student)
    rows = torch.nn.functional.normalize(0.5 * before[[5, 0]] + 0.5 * anchors[[0, 1]], dim=1)
    torch.testing.assert_close(module.student_memory[[5, 0]], rows)


def test_planning_leaves_the_memories_as_they_were():
    loss = planned(negatives=20).terms["contrast"].loss
    assert loss.log_normalisers.isinf().all()
    assert loss.student_memory.shape == (len(DATA.train), 128)
    assert loss.student_memory.abs().max() <= math.sqrt(3 / 128)


def test_has_the_papers_terms_and_weights():
    stage = planned()
    assert stage.name == "crd"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "contrast": 0.8}
    student, teacher, index = stage.terms["contrast"].reads
    assert (student, teacher) == (Tap("student", "head", "input"), Tap("teacher", "head", "input"))
    assert index == Tap("batch", "index")
    assert stage.terms["contrast"].loss.negatives == 16384


@pytest.mark.parametrize("method", [crd, crd_in_batch])
def test_soft_targets_may_be_added(method):
    term = planned(method, soft=1.0, temperature=3.0).terms["soft"]
    student, teacher = torch.randn(2, 4, 4)
    assert term.loss(student, teacher).item() == soft_loss(student, teacher, temperature=3.0).item()


def test_options_reach_the_loss():
    options = {"negatives": 7, "momentum": 0.9, "normaliser": "none"}
    loss = planned(embedding=5, contrast_temperature=0.1, **options).terms["contrast"].loss
    assert {name: getattr(loss, name) for name in options} == options
    assert loss.temperature == 0.1
    assert loss.student.linear.out_features == loss.teacher.linear.out_features == 5


@pytest.mark.parametrize("method", [crd, crd_in_batch])
def test_a_named_map_is_flattened(method):
    stage = planned(method, student_layer="stage3")
    assert stage.terms["contrast"].loss.student.linear.in_features == 64 * 4 * 4


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (crd, {"negatives": 0}, "negatives is 0: it must be at least 1"),
        (crd, {"momentum": 1.0}, "momentum is 1.0: it must be at least 0 and below 1"),
        (crd, {"embedding": 0}, "embedding is 0: it must be at least 1"),
        (crd, {"contrast_temperature": 0.0}, "contrast_temperature is 0.0: it must be above 0"),
        (crd_in_batch, {"embedding": 0}, "embedding is 0: it must be at least 1"),
        (crd_in_batch, {"contrast_temperature": -1.0}, "contrast_temperature is -1.0: it must be above 0"),
        (crd_in_batch, {"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        (crd_in_batch, {"hard": 0, "contrast": 0}, "are all 0"),
    ],
)
def test_what_cannot_be_is_refused(method, options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(method, **options)


def test_a_training_set_of_one_class_is_refused():
    training = Training(epochs=2, batch_size=16, optimizer=sgd(lr=0.01), schedule=constant(), exclude=(0, 1, 2))
    with pytest.raises(LimbeckError, match="the training set has only one class"):
        plan(crd, pair(), DATA, training)


# --- in the batch


def in_batch_loop(module, student, teacher, targets):
    sides = [
        [embedded(layer.linear, row) for row in given.tolist()]
        for layer, given in ((module.student, student), (module.teacher, teacher))
    ]
    total = 0.0
    for ours, theirs in (sides, sides[::-1]):
        for i, anchor in enumerate(ours):
            scores = [math.exp(dot(anchor, other) / module.temperature) for other in theirs]
            others = [score for j, score in enumerate(scores) if targets[j] != targets[i]]
            total -= math.log(scores[i] / (scores[i] + sum(others)))
    return total / len(targets)


@pytest.mark.parametrize("targets", [[0, 1, 2, 3], [0, 1, 0, 2], [1, 1, 0, 0]])
def test_in_the_batch_it_is_the_formula_in_loops(targets):
    module = BatchContrast(5, 6, embedding=3, temperature=0.5).double()
    given = features()
    value = module(*given, torch.tensor(targets))
    assert value.item() == pytest.approx(in_batch_loop(module, *given, targets), rel=1e-10)


def test_in_the_batch_the_gradient_is_that_of_the_value():
    module = BatchContrast(5, 6, embedding=3, temperature=0.5).double()
    student, teacher = (tensor.requires_grad_() for tensor in features())
    targets = torch.tensor([0, 1, 0, 2])
    weights = module.student.linear.weight, module.teacher.linear.weight
    assert torch.autograd.gradcheck(lambda s, *_: module(s, teacher, targets), (student, *weights))
    module(student, teacher, targets).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("targets", [[2], [1, 1, 1]])
def test_in_a_batch_of_one_class_there_is_nothing_to_tell_apart(targets):
    module = BatchContrast(5, 6, embedding=3).double()
    student, teacher = features(len(targets))
    value = module(student.requires_grad_(), teacher, torch.tensor(targets))
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_in_the_batch_huge_features_give_finite_gradients():
    module = BatchContrast(5, 6, embedding=3, temperature=0.001)
    student = (1e3 * torch.randn(4, 5)).requires_grad_()
    value = module(student, 1e3 * torch.randn(4, 6), torch.tensor([0, 1, 0, 2]))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_in_the_batch_it_reads_the_labels():
    stage = planned(crd_in_batch)
    assert stage.name == "crd_in_batch"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "contrast": 0.8}
    assert stage.terms["contrast"].reads[2] == TARGETS
