"""Metrics of pictures and of judges as pure functions of features, scores and samples. Nothing here loads a model.

All names of `__all__` are public. Rank correlations and pairwise accuracy with ties are for programs that compare a
metric's scores with people's: `pairwise_labels` makes the pairs that `pairwise_accuracy` counts.
"""

from rewarddance.evaluate.metrics.agreement import kendall_tau_b, pairwise_accuracy, pairwise_labels, spearman_rho
from rewarddance.evaluate.metrics.distances import among_samples, before_and_after, layer_distance
from rewarddance.evaluate.metrics.distributions import (
    Moments,
    cmmd,
    frechet_distance,
    frechet_inception_distance,
    kernel_inception_distance,
)
from rewarddance.evaluate.metrics.manifolds import mean_distance, precision_and_recall, vendi_score
from rewarddance.evaluate.metrics.text import clip_score

__all__ = [
    "Moments",
    "among_samples",
    "before_and_after",
    "clip_score",
    "cmmd",
    "frechet_distance",
    "frechet_inception_distance",
    "kendall_tau_b",
    "kernel_inception_distance",
    "layer_distance",
    "mean_distance",
    "pairwise_accuracy",
    "pairwise_labels",
    "precision_and_recall",
    "spearman_rho",
    "vendi_score",
]
