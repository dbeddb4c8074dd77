"""Clusters of similar images, which can replace the classes of a dataset."""

import torch
from torch import Tensor


def cluster_labels(points: Tensor, is_training: Tensor, num_clusters: int) -> Tensor:
    """Cluster labels (N,) of points (N, D), with equally many training points in each cluster.

    The points are divided along the first principal component of the training points, those in the
    mask `is_training` (N,), and each part is divided in the same way (Boley 1998, "Principal
    Direction Divisive Partitioning", here with a quantile as the threshold).
    """
    labels = torch.zeros(len(points), dtype=torch.int64)
    if num_clusters == 1:
        return labels
    component = torch.linalg.eigh(torch.cov(points[is_training].T)).eigenvectors[:, -1]
    component *= component[component.abs().argmax()].sign()  # the sign of eigh is arbitrary
    projection = points @ component
    lower = num_clusters // 2
    upper = projection > torch.quantile(projection[is_training], lower / num_clusters)
    labels[~upper] = cluster_labels(points[~upper], is_training[~upper], lower)
    labels[upper] = lower + cluster_labels(points[upper], is_training[upper], num_clusters - lower)
    return labels
