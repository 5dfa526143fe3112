"""What the features (N, D) of networks have in common with the classes and with each other.

scikit-learn takes a second to import, so it is imported when it is used.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

STARTS = 10
"""The starts of k-means, of which the best counts."""

_ROUNDING = 1e-6  # deviations below this part of the features are rounding errors of 32 bits


def linear_cka(first: Tensor, second: Tensor) -> float | None:
    """Return the linear centred kernel alignment of features (N, D) and (N, E) of the same samples, in [0, 1].

    It is 1 if the features are equal up to rotation, one scale and shift. None if one of them is constant.
    Formula: ||Y'X||² / (||X'X|| ||Y'Y||) of the centred features, with Frobenius norms [1], by way of the kernels
    (N, N), which take memory that does not depend on D.

    [1] S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of Neural Network Representations Revisited" (2019),
    section 3.
    """
    centred = [_centred(features) for features in (first, second)]
    if not all(values.any() for values in centred):
        return None
    one, other = (values @ values.T for values in centred)
    return float((one * other).sum() / (one.norm() * other.norm()))


def cluster_nmi(features: Tensor, labels: Tensor, clusters: int, *, seed: int = 0) -> float | None:
    """Return the normalised mutual information in [0, 1] of the classes and of k-means clusters of the features.

    It is divided by the mean of the two entropies. It is 0 for constant features, and None if all samples are of one
    class.

    Args:
        features: (N, D).
        labels: (N,) int64.
        clusters: their number; N if there are fewer samples.
        seed: of the starts.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.metrics import normalized_mutual_info_score  # type: ignore[import-untyped]

    if len(torch.unique(labels)) < 2:
        return None
    means = KMeans(min(clusters, len(features)), n_init=STARTS, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():  # several threads add in any order
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters
        found = means.fit_predict(_centred(features).numpy())
    return float(normalized_mutual_info_score(labels.numpy(), found))


def class_scatter(features: Tensor, labels: Tensor) -> float | None:
    """Return how far features are spread within the classes, relative to the distance between them.

    It is the variance within the classes divided by the mean squared distance between the means of two classes. Both
    are estimated without bias, so that they do not depend on the number of samples: the sum of the squared distances
    to the mean of the class is divided by N - K, and what this variance adds to the distances between the means is
    subtracted. None if there are fewer than two samples a class (N < 2 K), fewer than two classes, or if the means of
    the classes are not farther apart than those of random samples.

    Args:
        features: (N, D).
        labels: (N,) int64, of K classes.
    """
    values, (_, places, counts) = _centred(features), torch.unique(labels, return_inverse=True, return_counts=True)
    free = len(values) - len(counts)
    if free < len(counts):
        return None
    means = torch.stack([values[places == one].mean(dim=0) for one in range(len(counts))])
    within = (values - means[places]).square().sum() / free
    between = torch.pdist(means).square().mean() - within * 2 * counts.reciprocal().mean()  # NaN for one class
    return float(within / between) if between > 0 else None


def projection(features: Tensor) -> NDArray[np.float32]:
    """Return the first two principal components (N, 2) of features (N, D); 0 where there are fewer."""
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]

    values = _centred(features)
    found = np.zeros((len(values), 2), np.float32)
    if values.any():
        count = min(2, *values.shape)
        with threadpool_limits(1):
            found[:, :count] = PCA(count, random_state=0).fit_transform(values.numpy())
    return found


def _centred(features: Tensor) -> Tensor:
    """The features minus their mean, in 64 bits; 0 if they are constant up to rounding."""
    values = features.double()
    centred = values - values.mean(dim=0)
    return centred if centred.norm() > _ROUNDING * values.norm() else torch.zeros_like(centred)
