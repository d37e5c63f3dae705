"""Novelty: the distance of a picture's features to those of a reference set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewarddance.core.errors import ConfigError, InputError

SHRINKAGE = 0.05
"""Share of the mean variance that is added to the covariance's diagonal, for sets smaller than their dimensions."""


@dataclass(frozen=True)
class NoveltyIndex:
    """A fitted reference set.

    Attributes:
        method: `knn`: mean Euclidean distance to the `neighbours` nearest reference items. `mahalanobis`: distance from
            the mean in units of the (shrunk) covariance, divided by sqrt(D).
        points: the reference features (M, D), or the whitening matrix (D, D).
        mean: (D,), subtracted from features first.
    """

    method: Literal["knn", "mahalanobis"]
    neighbours: int
    points: Tensor
    mean: Tensor

    @classmethod
    def fit(cls, features: Tensor, method: Literal["knn", "mahalanobis"], neighbours: int = 5) -> NoveltyIndex:
        """From reference features (M, D).

        Raises:
            InputError: fewer items than neighbours, or than two.
        """
        if len(features) < max(2, neighbours):
            raise InputError(f"novelty: {len(features)} reference pictures are too few")
        x = features.detach().double().cpu()
        mean = x.mean(0)
        if method == "knn":
            return cls(method, neighbours, (x - mean).float(), mean.float())
        covariance = torch.cov((x - mean).T).reshape(x.shape[1], x.shape[1])
        covariance += SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
        values, vectors = torch.linalg.eigh(covariance)
        whitening = vectors / values.clamp(min=1e-12).sqrt() / x.shape[1] ** 0.5
        return cls(method, neighbours, whitening.float(), mean.float())

    def distance(self, features: Tensor) -> Tensor:
        """(N,) for features (N, D); differentiable.

        Raises:
            ConfigError: other features than it was fitted with.
        """
        if features.shape[1] != len(self.mean):
            raise ConfigError(
                f"novelty: fitted on {len(self.mean)} features, but got {features.shape[1]}; fit it again"
            )
        x = features.float() - self.mean.to(features.device)
        points = self.points.to(x.device)
        if self.method == "mahalanobis":
            return ((x @ points).square().sum(1) + 1e-12).sqrt()
        squared = (x[:, None] - points[None]).square().sum(-1)
        return (squared.topk(self.neighbours, dim=1, largest=False).values + 1e-12).sqrt().mean(1)

    def save(self, path: Path) -> None:
        facts = {"method": self.method, "neighbours": str(self.neighbours)}
        save_file({"points": self.points.contiguous(), "mean": self.mean.contiguous()}, path, facts)

    @classmethod
    def load(cls, path: Path) -> NoveltyIndex:
        """Load what `save` wrote.

        Raises:
            ConfigError: no such file, or another content.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                method: Literal["knn", "mahalanobis"] = "knn" if facts["method"] == "knn" else "mahalanobis"
                return cls(method, int(facts["neighbours"]), file.get_tensor("points"), file.get_tensor("mean"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: not a novelty index ({' '.join(str(error).split())})") from None
