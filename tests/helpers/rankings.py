"""Choices between pictures from a ranking of them."""

from rewarddance.core.preferences import Choice, all_pairs


def choices_of_ranking(*ranks):
    """One choice for every pair. A lower rank is better, and equal ranks are ties."""
    pairs = all_pairs(len(ranks))
    return tuple(Choice(i, j, 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j])) for i, j in pairs)
