"""The YAML file of a composite reward. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rewarddance.core.config import Config, load_recipe, parse_config
from rewarddance.core.errors import ConfigError

Combine = Literal["sum", "minimum", "mean_minus_std"]
PRESETS: dict[str, dict[str, float]] = {
    "equal": {},
    "default": {"fidelity": 0.40, "style": 0.25, "composition": 0.25, "novelty": 0.10},
    "colour": {"fidelity": 0.40, "style": 0.25, "colour_harmony": 0.25, "composition": 0.10},
}
"""Weights by name of the part. In `equal` every part weighs 1."""


class JudgePartConfig(Config):
    """A judge's margin.

    Attributes:
        judge: a name, folder or address that `load_judge` takes; not a composite.
        criterion: the criterion of its questions; the judge's own when None.
    """

    kind: Literal["judge"]
    judge: str = "tiny"
    criterion: str | None = None


class ClipPartConfig(Config):
    """CLIP similarity (cosine) of the picture to its prompt, to a text, or to the pictures of a folder.

    Attributes:
        model: `clip-tiny`, or a local folder of a `CLIPModel`.
        text: the text, in place of the prompt.
        gallery: a set of pictures (`data/sources.py`), in place of the prompt; the similarity is the mean over them.
        style: only the gallery's pictures of this style.
    """

    kind: Literal["clip"]
    model: str = "clip-tiny"
    text: str | None = None
    gallery: str | None = None
    style: str | None = None


class CompositionPartConfig(Config):
    """Rules of composition (`reward/composition.py`) and the weights of their mean."""

    kind: Literal["composition"]
    thirds: float = Field(1.0, ge=0)
    balance: float = Field(1.0, ge=0)
    margins: float = Field(1.0, ge=0)
    symmetry: float = Field(1.0, ge=0)


class HarmonyPartConfig(Config):
    """Colour harmony on the hue wheel (`reward/harmony.py`)."""

    kind: Literal["colour_harmony"]


class NoveltyPartConfig(Config):
    """Distance of a picture's features to a reference set (`reward/novelty.py`).

    Attributes:
        features: VLM of the embedded one's class whose vision tower gives the features, or a CLIP (`clip-tiny`, a
            folder of a `CLIPModel`).
        method: mean distance to the `neighbours` nearest pictures, or Mahalanobis distance to all.
        reference: a set of pictures (`data/sources.py`) in place of one half of the fit's records.
        style: only the set's pictures of this style.
    """

    kind: Literal["novelty"]
    features: str = "tiny"
    method: Literal["knn", "mahalanobis"] = "knn"
    neighbours: int = Field(5, ge=1)
    reference: str | None = None
    style: str | None = None


PartConfig = Annotated[
    JudgePartConfig | ClipPartConfig | CompositionPartConfig | HarmonyPartConfig | NoveltyPartConfig,
    Field(discriminator="kind"),
]


class CompositeConfig(Config):
    """A composite reward.

    Attributes:
        preset: weights by name, see `PRESETS`.
        weights: weights that replace or extend the preset's.
        parts: by name; a part of the preset that is not here is left out, and the other weights are renormalised.
        optional: parts that may refuse an item; its other parts' weights are then renormalised. If another part
            refuses, the item is refused.
        bound: standardised values are bounded to (-bound, bound) by bound * tanh(z / bound).
        combine: the weighted sum of the parts; `minimum`, the worst of them; or `mean_minus_std`, the weighted mean
            minus `std_weight` weighted standard deviations over the parts.
    """

    preset: Literal["default", "colour", "equal"] = "default"
    weights: dict[str, float] = {}
    parts: dict[str, PartConfig] = Field(min_length=1)
    optional: tuple[str, ...] = ()
    bound: float = Field(3.0, gt=0)
    combine: Combine = "sum"
    std_weight: float = Field(1.0, ge=0)

    @field_validator("parts")
    @classmethod
    def _have_names_for_metrics(cls, parts: dict[str, PartConfig]) -> dict[str, PartConfig]:
        if wrong := [name for name in parts if name.endswith("_std")]:
            raise ValueError(f"parts.{wrong[0]}: a name cannot end in _std, which marks deviations in the metrics")
        return parts

    @field_validator("weights")
    @classmethod
    def _are_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weights.{name}: must be 0 or more, got {weight}")
        return weights


def is_composite(name: str | Path) -> bool:
    """Whether the name of a judge is a composite's YAML file."""
    return Path(name).suffix in (".yaml", ".yml")


def fitted_folder(file: Path) -> Path:
    """Where a composite's fit lies: beside `NAME.yaml`, in `NAME.fitted`."""
    return file.with_name(f"{file.stem}.fitted")


def load_composite_config(path: str | Path) -> CompositeConfig:
    """Read the YAML file.

    Raises:
        ConfigError: no such file, a wrong key, or weights that do not fit the parts.
    """
    config = parse_config(CompositeConfig, load_recipe(path), str(path))
    try:
        normalised_weights(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def normalised_weights(config: CompositeConfig) -> tuple[dict[str, float], tuple[str, ...]]:
    """Weights of the parts, which sum to 1, and the names of the weighted parts that are missing.

    Raises:
        ConfigError: a part without a weight, an optional part that does not exist, or weights that are all 0.
    """
    preset = dict.fromkeys(config.parts, 1.0) if config.preset == "equal" else PRESETS[config.preset]
    weights: Mapping[str, float] = preset | config.weights
    if unweighted := [name for name in config.parts if name not in weights]:
        raise ConfigError(f"parts {', '.join(unweighted)}: have no weight; add them under weights")
    if unknown := [name for name in config.optional if name not in config.parts]:
        raise ConfigError(f"optional: there is no part {', '.join(unknown)}")
    total = sum(weights[name] for name in config.parts)
    if total == 0:
        raise ConfigError("the weights of all parts are 0")
    missing = tuple(name for name, weight in weights.items() if weight > 0 and name not in config.parts)
    return {name: weights[name] / total for name in config.parts}, missing
