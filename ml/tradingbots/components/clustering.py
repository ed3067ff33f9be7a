"""Rough clusters of points, from which fits of regimes begin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ml.tradingbots.components.regime_detector import FloatArray

IntArray = npt.NDArray[np.int64]

# Points that clusters are found from, and rounds of improving them: what follows only needs a start.
_MOST_POINTS = 20_000
_ROUNDS = 10


def rough_clusters(points: FloatArray, n_clusters: int, rng: np.random.Generator) -> IntArray:
    """Return the cluster of each point, by k-means++ (Arthur & Vassilvitskii, 2007) and a few rounds of k-means.

    Args:
        points: (n_points, n_features), each feature with a spread of about 1.
        n_clusters: number of clusters; some may stay empty.
        rng: of the choice of first centers, and of the points they are found from where there are many.
    """
    some = points
    if len(points) > _MOST_POINTS:
        some = points[rng.choice(len(points), _MOST_POINTS, replace=False)]
    centers = first_centers(some, n_clusters, rng)
    for _ in range(_ROUNDS):
        labels = np.argmin(squared_distances(some, centers), axis=1)
        for k in range(n_clusters):
            if (labels == k).any():
                centers[k] = some[labels == k].mean(axis=0)
    found: IntArray = np.argmin(squared_distances(points, centers), axis=1)
    return found


def first_centers(points: FloatArray, n_clusters: int, rng: np.random.Generator) -> FloatArray:
    """Draw points as centers, each by its squared distance from those before it (k-means++); (n_clusters, n_features)."""
    centers: FloatArray = points[rng.integers(len(points))][None]
    for _ in range(n_clusters - 1):
        far = squared_distances(points, centers).min(axis=1)
        total = far.sum()
        chosen = rng.choice(len(points), p=far / total) if total > 0.0 else rng.integers(len(points))
        centers = np.vstack([centers, points[chosen]])
    return centers


def squared_distances(points: FloatArray, centers: FloatArray) -> FloatArray:
    """Squared distance of each point from each center; (n_points, n_centers)."""
    # Added up feature by feature, so that a point's bits do not depend on the points beside it.
    result = np.zeros((len(points), len(centers)))
    for feature in range(points.shape[1]):
        off = points[:, feature, None] - centers[:, feature]
        result += off * off
    return result
