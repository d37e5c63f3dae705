"""How good a judge is on records: accuracy, rank correlation, swap disagreement, answer mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from rewarddance.core.preferences import PreferenceRecord, all_pairs
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.reward.objective import agreement

CLEAR = 0.05
"""Least difference of exact values for a pair to count as decided."""


@torch.no_grad()
def measure_judge(judge: RewardModel, records: Sequence[PreferenceRecord], chunk: int = 16) -> dict[str, Any]:
    """Figures of a judge on held-out records.

    With exact values (`truth`), pairs that differ by more than `CLEAR` are scored against them; otherwise the
    recorded choices are, ties left out.

    Returns:
        accuracy, accuracy_<source> where there are several sources, num_pairs, label_accuracy, answer_mass,
        disagreement (mean |m(x, ref) + m(ref, x)| / 2), spearman (mean over prompts of the rank correlation
        between round-robin margin and truth, K >= 3).
    """
    rights: list[tuple[str, float]] = []
    labelled: list[float] = []
    correlations: list[float] = []
    masses, swaps = [], []
    for start in range(0, len(records), chunk):
        part = records[start : start + chunk]
        asked = [
            Comparison(r.prompt, r.media[i], r.media[j], r.criterion) for r in part for i, j in all_pairs(len(r.media))
        ]
        verdict = judge.judge(asked)
        masses.append(verdict.answer_mass.cpu())
        if verdict.disagreement is not None:
            swaps.append(verdict.disagreement.cpu())
        margins = iter(verdict.margin.float().cpu().tolist())
        for r in part:
            table = np.zeros((len(r.media), len(r.media)))
            for i, j in all_pairs(len(r.media)):
                table[i, j] = next(margins)
                table[j, i] = -table[i, j]
            labelled += [_agree(table[c.first, c.second], c.label - 0.5) for c in r.choices if c.label != 0.5]
            if r.truth is None:
                continue
            for i, j in all_pairs(len(r.media)):
                gap = r.truth[i] - r.truth[j]
                if abs(gap) > CLEAR:
                    rights.append((r.source, _agree(table[i, j], gap)))
            if len(r.media) >= 3 and np.ptp(r.truth) > CLEAR:
                correlations.append(float(spearmanr(table.sum(1), r.truth).statistic))
    out: dict[str, Any] = {"num_pairs": len(rights) or len(labelled)}
    out["label_accuracy"] = float(np.mean(labelled)) if labelled else None
    out["accuracy"] = float(np.mean([v for _, v in rights])) if rights else out["label_accuracy"]
    for source in sorted({s for s, _ in rights}):
        out[f"accuracy_{source}"] = float(np.mean([v for s, v in rights if s == source]))
    out["spearman"] = float(np.nanmean(correlations)) if correlations else None
    out["answer_mass"] = float(torch.cat(masses).mean()) if masses else None
    out["disagreement"] = float(torch.cat(swaps).mean()) if swaps else None
    return out


def _agree(margin: float, truth: float) -> float:
    return float(agreement(torch.tensor(margin), torch.tensor(truth)))
