"""Which pairs to label next. Pure functions of the judges' P(first is better), shape (J judges, N pairs).

`disagreement` asks for pairs about which each judge is sure, but the judges disagree (BALD, Houlsby et al., arXiv
1112.5745). `uncertainty` asks for pairs near one half, which includes pairs that are ties for everybody. `coverage`
asks for pairs that are unlike each other (k-centre greedy, Sener and Savarese, arXiv 1708.00489).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.errors import InputError
from rewarddance.core.streams import stream
from rewarddance.data.names import Strategy

Array = NDArray[np.float64]
CANDIDATES = 4
"""`mixed` takes this many times the budget of pairs with the highest scores, and chooses by coverage among them."""


def entropy(p: Array) -> Array:
    """Entropy of a choice with probability p, in bits; 1 at one half."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)))


def uncertainty(p: Array) -> Array:
    """(N,) entropy of the mean of all judges, 0 to 1."""
    return entropy(p.mean(0))


def disagreement(p: Array) -> Array:
    """(N,) entropy of the mean minus the mean entropy, 0 to 1: the expected information of a label about the judges.

    Raises:
        InputError: fewer than two judges.
    """
    if len(p) < 2:
        raise InputError("disagreement needs two judges or more; name several with --judges, or use uncertainty")
    return np.asarray(np.maximum(entropy(p.mean(0)) - entropy(p).mean(0), 0))


def k_centre(features: Array, budget: int, first: int = 0) -> list[int]:
    """Greedy k-centre: row `first`, then again and again the row that is farthest from all chosen rows.

    Args:
        features: (N, D); distances are Euclidean.
    """
    chosen = [first]
    nearest = ((features - features[first]) ** 2).sum(1)
    while len(chosen) < min(budget, len(features)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((features - features[chosen[-1]]) ** 2).sum(1))
        nearest[chosen] = -1
    return chosen


def spread(scores: Array, groups: Sequence[str], budget: int, most: int) -> list[int]:
    """The highest scores, at most `most` of each group; then the highest of the others, if the budget is not spent."""
    order = np.argsort(-scores, kind="stable").tolist()
    taken: dict[str, int] = {}
    chosen, others = [], []
    for i in order:
        group = groups[i]
        if taken.get(group, 0) < most:
            taken[group] = taken.get(group, 0) + 1
            chosen.append(i)
        else:
            others.append(i)
    return (chosen + others)[:budget]


def select(
    strategy: Strategy,
    p: Array,
    budget: int,
    features: Array | None = None,
    groups: Sequence[str] | None = None,
    most_per_group: int = 4,
    seed: int = 0,
) -> list[int]:
    """The pairs to label next, most wanted first.

    Args:
        p: (J, N) P(first is better) by judge and pair. A pair with NaN is never chosen.
        budget: number of pairs.
        features: (N, D), for `coverage` and `mixed`.
        groups: of every pair, its prompt for example; at most `most_per_group` of one are chosen while others are left.

    Raises:
        InputError: a strategy lacks judges or features.
    """
    usable = np.flatnonzero(np.isfinite(p).all(0))
    known = p[:, usable]
    names = [str(i) for i in range(len(usable))] if groups is None else [groups[int(i)] for i in usable]
    rng = stream(seed, "select")
    if strategy == "random":
        return [int(usable[i]) for i in rng.permutation(len(usable))[:budget]]
    if strategy in ("coverage", "mixed") and features is None:
        raise InputError(f"{strategy} needs features of the pairs")
    if len(usable) == 0:
        return []
    if strategy == "coverage":
        assert features is not None
        picked = k_centre(features[usable], budget, int(rng.integers(len(usable))))
        return [int(usable[i]) for i in picked]
    scores = disagreement(known) if strategy == "disagreement" or len(p) > 1 else uncertainty(known)
    scores = uncertainty(known) if strategy == "uncertainty" else scores
    if strategy != "mixed":
        return [int(usable[i]) for i in spread(scores, names, budget, most_per_group)]
    assert features is not None
    pool = spread(scores, names, CANDIDATES * budget, CANDIDATES * most_per_group)
    picked = k_centre(features[usable[pool]], budget)
    return [int(usable[pool[i]]) for i in picked]
