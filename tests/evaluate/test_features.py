import math

import numpy as np
import pytest
import torch

from limbeck.evaluate.features import class_scatter, cluster_nmi, linear_cka, projection


def clouds(samples, classes, width=4, distance=20.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = distance * torch.randn(classes, width, generator=generator)
    return centres[labels] + torch.randn(samples, width, generator=generator), labels


def slow_cka(first, second):
    """tr(KHLH) of the kernels, entry by entry, as in section 3 of the paper."""

    def centred(rows):
        kernel = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
        n = len(rows)
        means, total = [sum(row) / n for row in kernel], sum(map(sum, kernel)) / n**2
        return [[kernel[i][j] - means[i] - means[j] + total for j in range(n)] for i in range(n)]

    def product(one, other):
        return sum(a * b for row, its in zip(one, other, strict=True) for a, b in zip(row, its, strict=True))

    k, m = centred(first.tolist()), centred(second.tolist())
    return product(k, m) / math.sqrt(product(k, k) * product(m, m))


def slow_nmi(labels, clusters):
    n = len(labels)

    def entropy(values):
        return -sum(values.count(one) / n * math.log(values.count(one) / n) for one in set(values))

    pairs = list(zip(labels, clusters, strict=True))
    mutual = entropy(labels) + entropy(clusters) - entropy(pairs)
    return mutual / ((entropy(labels) + entropy(clusters)) / 2)


def test_cka_is_that_of_slow_loops():
    first, second = torch.randn(12, 5).double(), torch.randn(12, 3).double()
    assert linear_cka(first, second) == pytest.approx(slow_cka(first, second))
    assert linear_cka(second, first) == pytest.approx(slow_cka(first, second))


def test_cka_of_a_rotated_scaled_and_shifted_feature_is_1():
    features = torch.randn(30, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(features, 3 * features @ rotation + 7) == pytest.approx(1, abs=1e-6)


def test_cka_of_uncorrelated_features_is_0():
    first = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    second = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(first, second) == pytest.approx(0, abs=1e-12)


def constant(value, samples=7):
    """Features that differ by rounding only, as those of batches of different sizes."""
    return value * (1 + 1e-7 * torch.randn(samples, 3))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_cka_of_a_constant_feature_does_not_exist(value):
    assert linear_cka(constant(value), torch.randn(7, 3)) is None
    assert linear_cka(torch.randn(7, 3), constant(value)) is None


def test_nmi_of_separate_clusters_is_1():
    features, labels = clouds(60, 4)
    assert cluster_nmi(features, labels, 4) == pytest.approx(1)


def test_nmi_is_that_of_the_clusters():
    features = torch.tensor([[0.0], [0.1], [9.0], [9.1], [20.0], [20.1]])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert cluster_nmi(features, labels, 3) == pytest.approx(slow_nmi(labels.tolist(), [0, 0, 1, 1, 2, 2]))


def test_nmi_is_the_same_each_time_and_leaves_the_generators_alone():
    features, labels = torch.randn(80, 3), torch.arange(80) % 5
    np.random.seed(0)
    before, states = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = cluster_nmi(features, labels, 5)
    assert first == cluster_nmi(features, labels, 5)
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(torch.get_rng_state(), states)


def test_nmi_of_constant_features_is_0():
    assert cluster_nmi(constant(0.1, 8), torch.arange(8) % 2, 2) == 0


def test_nmi_exists_if_there_are_fewer_different_features_than_classes():
    labels = torch.arange(9) % 3
    features = torch.tensor([[0.0], [0.0], [5.0]])[labels]
    assert cluster_nmi(features, labels, 3) == pytest.approx(slow_nmi(labels.tolist(), (labels > 1).tolist()))


def test_nmi_exists_if_a_class_is_missing_or_there_are_fewer_samples_than_classes():
    features, labels = clouds(40, 3)
    assert 0 < cluster_nmi(features, labels, 4) < 1
    assert cluster_nmi(features[:3], labels[:3], 10) == pytest.approx(1)


def test_nmi_with_one_class_does_not_exist():
    assert cluster_nmi(torch.randn(5, 2), torch.zeros(5).long(), 3) is None


def test_the_projection_keeps_the_distances_of_features_in_a_plane():
    plane = torch.randn(20, 2)
    features = plane @ torch.linalg.qr(torch.randn(9, 2)).Q.T + 3
    points = torch.from_numpy(projection(features))
    assert points.dtype == torch.float32
    assert torch.allclose(torch.cdist(points, points), torch.cdist(plane, plane), atol=1e-4)


def test_the_first_axis_of_the_projection_has_the_most_variance():
    points = projection(torch.randn(50, 6) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0, 1.0]))
    assert points[:, 0].var() > points[:, 1].var()


def test_features_with_less_than_two_dimensions_have_a_projection():
    line = torch.tensor([[1.0], [2.0], [4.0]])
    assert np.abs(projection(line)[:, 0]).tolist() == pytest.approx([4 / 3, 1 / 3, 5 / 3])
    assert not projection(line)[:, 1].any()
    assert not projection(constant(0.1)).any()
    assert projection(torch.randn(1, 3)).tolist() == [[0, 0]]


def test_the_scatter_is_the_variance_within_the_classes_over_the_distance_between_them():
    features = torch.tensor([[0.0, 1], [0, -1], [3, 2], [3, -2], [0, 3], [0, 4], [0, 5]])
    labels = torch.tensor([5, 5, 2, 2, 7, 7, 7])  # means (0, 0), (3, 0) and (0, 4)
    within = (1 + 1 + 4 + 4 + 1 + 0 + 1) / (7 - 3)
    noise = within * ((1 / 2 + 1 / 2) + (1 / 2 + 1 / 3) + (1 / 2 + 1 / 3)) / 3
    assert class_scatter(features, labels) == pytest.approx(within / ((9 + 16 + 25) / 3 - noise))
    assert class_scatter(10 * features + 7, labels) == pytest.approx(class_scatter(features, labels))


@pytest.mark.parametrize("samples", [2, 50])
def test_the_scatter_does_not_depend_on_the_number_of_samples(samples):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(200, 20, generator=generator)  # 40 between two of them, and 20 * 4 within each
    labels = torch.arange(200).repeat(samples)
    features = means[labels] + 2 * torch.randn(len(labels), 20, generator=generator)
    assert class_scatter(features, labels) == pytest.approx(2, rel=0.1)


def test_one_class_equal_means_and_single_samples_have_no_scatter():
    assert class_scatter(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)) is None
    assert class_scatter(torch.full((6, 3), 0.1), torch.tensor([0, 1, 0, 1, 0, 0])) is None
    assert class_scatter(torch.eye(3), torch.tensor([0, 1, 1])) is None  # too few samples
