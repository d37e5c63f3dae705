"""A composite reward R of standardised, bounded parts z_i: the sum of w_i z_i, or a conservative ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rewarddance.core.config import Computed
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.combine import combined
from rewarddance.reward.composite_config import Combine
from rewarddance.reward.judge import Judge
from rewarddance.reward.learned import LearnedJudge
from rewarddance.reward.parts import JudgePart, Part
from rewarddance.reward.rank import Ranking, rank
from rewarddance.reward.remote import RemoteJudge

CRITERION = "overall"
UNMEASURED = "has no deviation for this kind of question, pictures alone or pairs; fit the composite again"
MIN_VALUES = 8
"""Number of values of a part that its mean and deviation need."""


@dataclass(frozen=True)
class Standard:
    """How a part's raw values spread on the reference set.

    Attributes:
        mean, std: of single pictures; None for a part that only compares.
        paired_std: root mean square over pairs of pictures of one prompt. The mean of pairs is 0, since a pair may be
            taken in either order.
    """

    mean: float | None
    std: float | None
    paired_std: float | None

    def standardise(self, values: Tensor, paired: Tensor) -> Tensor:
        """z (N,): (value - mean) / std for single pictures, value / paired_std for pairs; NaN if that is unknown.

        An unknown z has a gradient of exactly 0, so it harms no other item.

        Args:
            paired: which items have a reference, (N,).
        """
        shift = torch.where(paired, 0.0, self.mean or 0.0)
        scale = torch.where(paired, self.paired_std or 0.0, self.std or 0.0)
        known = values.isfinite() & (scale > 0)
        z = (torch.where(known, values, 0.0) - shift) / torch.where(known, scale, 1.0)
        return z.masked_fill(~known, torch.nan)


def fit_standard(name: str, alone: Tensor, paired: Tensor) -> Standard:
    """From a part's raw values of single pictures (N,) and of pairs (M,); NaN are left out.

    Raises:
        InputError: too few values, or values that are all equal.
    """
    alone, paired = (v.double()[v.isfinite()] for v in (alone, paired))
    mean = std = paired_std = None
    if len(alone) >= MIN_VALUES:
        mean, std = float(alone.mean()), float(alone.std())
    if len(paired) >= MIN_VALUES:
        paired_std = float(paired.square().mean().sqrt())
    if std is None and paired_std is None:
        raise InputError(f"part {name}: answered {len(alone)} pictures of the reference set; {MIN_VALUES} are needed")
    if 0.0 in (std, paired_std):
        raise InputError(f"part {name}: has one value for all pictures of the reference set, so it orders nothing")
    return Standard(mean, std, paired_std)


def save_standards(path: Path, standards: Mapping[str, Standard], facts: Mapping[str, Any]) -> None:
    """Write `standards.json`."""
    content = {"format": 1, **facts, "parts": {name: asdict(s) for name, s in standards.items()}}
    path.write_text(json.dumps(content, indent=2) + "\n")


def load_standards(path: Path) -> tuple[dict[str, Any], dict[str, Standard]]:
    """The facts that `save_standards` was given (`config` and `files` of the parts), and the standards, by name.

    Raises:
        ConfigError: no such file, or another content.
    """
    try:
        content = json.loads(path.read_text())
        facts = {"config": content["config"], "files": content.get("files", {})}
        return facts, {name: Standard(**values) for name, values in content["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); fit the composite again") from None


@dataclass(frozen=True)
class _Measured:
    """Answers to N items by name of the part: raw values (N,), z (N,) after the bound, NaN where refused, reasons.

    `paired` (N,) says which items have a reference.
    """

    paired: Tensor
    raw: Mapping[str, Tensor]
    z: Mapping[str, Tensor]
    refused: Mapping[str, Mapping[int, str]]


@dataclass
class Composite:
    """Several parts as one judge (`core.types.RewardModel`).

    Attributes:
        parts, standards: by name.
        weights: of all parts; they sum to 1.
        missing: parts of the preset that are left out.
        optional: parts that may refuse an item.
        bound: of standardised values.
        combine, std_weight: how the parts become one margin (`combine.combined`).
    """

    parts: Mapping[str, Part]
    standards: Mapping[str, Standard]
    weights: Mapping[str, float]
    missing: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    bound: float = 3.0
    combine: Combine = "sum"
    std_weight: float = 1.0

    def judge(self, comparisons: Sequence[Comparison], *, on_refused: Literal["mark", "raise"] = "mark") -> Verdict:
        """Verdicts (N,) whose margin is R, differentiable to pixels; `parts` holds z by name, after the bound.

        Every z has deviation 1 on the reference set, so no part outweighs the others by its scale. `bound *
        tanh(z / bound)` does the same for outliers. A conservative ensemble (`combine`) is conservative about the
        candidate; `swapped_margin` of the verdict is its margin of the swapped pair. A single picture has no other
        order: its swapped margin is -R.

        Raises:
            JudgementError: with `on_refused="raise"`, if an item is refused.
        """
        if not comparisons:
            return Verdict.from_margin(torch.zeros(0))
        verdict = self._verdict(self._measured(comparisons))
        return verdict.or_raise(comparisons) if on_refused == "raise" else verdict

    def _measured(self, comparisons: Sequence[Comparison]) -> _Measured:
        answers = {name: part.values(comparisons) for name, part in self.parts.items()}
        device = next(iter(answers.values())).values.device
        paired = torch.tensor([c.reference is not None for c in comparisons], device=device)
        raw = {name: a.values.float().to(device) for name, a in answers.items()}
        z, refused = dict[str, Tensor](), dict[str, dict[int, str]]()
        for name, values in raw.items():
            standardised = self.standards[name].standardise(values, paired)
            unmeasured = (standardised.isnan() & values.isfinite()).nonzero().flatten().tolist()
            z[name] = self.bound * torch.tanh(standardised / self.bound)
            refused[name] = {**answers[name].refused, **dict.fromkeys(unmeasured, UNMEASURED)}
        return _Measured(paired, raw, z, refused)

    def _verdict(self, measured: _Measured) -> Verdict:
        z = torch.stack(list(measured.z.values()), 1)
        known = z.isfinite()
        weights = z.new_tensor([self.weights[name] for name in measured.z]) * known
        z = torch.where(known, z, 0.0)  # NaN is replaced before it is multiplied, since 0 times NaN has no gradient
        total, swapped = combined(z, weights, self.combine, self.std_weight), None
        if self.combine != "sum":
            swapped = torch.where(measured.paired, combined(-z, weights, self.combine, self.std_weight), -total)
        verdict = replace(Verdict.from_margin(total), parts=measured.z, swapped_margin=swapped)
        return verdict.refuse(self._reasons(len(z), measured.refused))

    def _reasons(self, num: int, refused: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
        """Why items are refused: a part that is not optional refused, or all parts did."""
        reasons: dict[int, str] = {}
        for i in range(num):
            by_part = {name: reasons_of_part[i] for name, reasons_of_part in refused.items() if i in reasons_of_part}
            required = [name for name in by_part if name not in self.optional]
            if required or len(by_part) == len(self.parts):
                name = (required or list(by_part))[0]
                reasons[i] = f"{name}: {by_part[name]}"
        return reasons

    @torch.no_grad()
    def explain(self, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
        """For every comparison R and the rows of its parts: raw value, z, weight, and in a sum the contribution to R.

        Parts that refused have null and a reason. `missing` names the preset's parts that are left out.
        """
        measured = self._measured(comparisons)
        verdict = self._verdict(measured)
        return [self._explained(i, measured, verdict) for i in range(len(comparisons))]

    def _explained(self, i: int, measured: _Measured, verdict: Verdict) -> dict[str, Any]:
        answered = [name for name in self.parts if i not in measured.refused[name]]
        share = sum(self.weights[name] for name in answered) or 1.0
        rows: dict[str, Any] = {}
        for name in self.parts:
            if name not in answered:
                rows[name] = {"raw": None, "z": None, "weight": 0.0, "refused": measured.refused[name][i]}
                continue
            raw, z, weight = float(measured.raw[name][i]), float(measured.z[name][i]), self.weights[name] / share
            rows[name] = {"raw": raw, "z": z, "weight": weight}
            if self.combine == "sum":
                rows[name]["contribution"] = weight * z
        total = None if i in verdict.refused else float(verdict.margin[i])
        return {"R": total, "parts": rows, "missing": list(self.missing)}

    @property
    def criterion(self) -> str:
        """The name of its criterion; each part has its own."""
        return CRITERION

    def own_or(self, criterion: str) -> str:
        """`criterion` itself: a composite judges by all its parts, whatever criterion is asked for."""
        return criterion

    @property
    def precision(self) -> Computed:
        """bf16 if a judge among the parts computes in bf16, else fp32."""
        return "bf16" if any(judge.precision == "bf16" for judge in self._all_judges()) else "fp32"

    @property
    def differentiable(self) -> bool:
        """Whether R has gradients: no judge among the parts is behind HTTP."""
        return all(judge.differentiable for judge in self._all_judges())

    parts_are_judges: ClassVar[bool] = True
    """Whether `Verdict.parts` are values of several judges on one scale, whose differences are disagreement."""

    def problem(self, comparison: Comparison) -> str | None:
        """Why this composite cannot be asked about a comparison: the first reason of a part that may not refuse."""
        for name, part in self.parts.items():
            if name in self.optional or not isinstance(part, JudgePart):
                continue
            if (reason := part.judge.problem(replace(comparison, criterion=part.criterion))) is not None:
                return f"{name}: {reason}"
        return None

    def _all_judges(self) -> list[Judge | LearnedJudge | RemoteJudge]:
        return [part.judge for part in self.parts.values() if isinstance(part, JudgePart)]

    def judges(self) -> list[Judge | LearnedJudge]:
        """The judges among the parts whose models are in this process."""
        return [judge for judge in self._all_judges() if not isinstance(judge, RemoteJudge)]

    def keep_images(self, num_prompts: int, reference: Media | None, num_conditions: int) -> None:
        """Call `keep_images` of every judge among the parts."""
        for judge in self.judges():
            judge.keep_images(num_prompts, reference, num_conditions)

    def rank(self, prompt: Request, images: Sequence[Media], criterion: str | None = None) -> Ranking:
        """Order pictures of one prompt by round robin."""
        return rank(self, prompt, images, criterion)


AnyJudge = Judge | LearnedJudge | Composite | RemoteJudge
