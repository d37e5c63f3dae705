"""`rewarddance rank`: order picture files of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.reward.composite import AnyJudge


def rank_files(
    judge: AnyJudge, prompt: Request, pictures: Mapping[Path, Media], criterion: str | None
) -> dict[str, Any]:
    """Round robin over pictures or clips, named by their files.

    Args:
        prompt: a text, or a request with the picture that all were made from.

    Returns:
        order: path and mean log-odds against the others, best first; wins: P(row is better than column), in the order
        of the input, None for refused pairs; refused: pairs of paths with the reason, if there are any.
    """
    paths = list(pictures)
    ranking = judge.rank(prompt, list(pictures.values()), criterion)
    wins = [[None if w != w else round(w, 4) for w in row] for row in ranking.wins.tolist()]
    order = [{"path": str(paths[i]), "margin": round(float(ranking.margin[i]), 4)} for i in ranking.order]
    result = {"order": order, "wins": wins, "wins_are_of": [str(p) for p in paths], "computes_in": judge.precision}
    refused = [{"first": str(paths[i]), "second": str(paths[j]), "why": w} for (i, j), w in ranking.refused.items()]
    return result | ({"refused": refused} if refused else {})
