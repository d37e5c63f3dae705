"""Blind spots: a judge that sees everything has none, one that ignores a side shows it there alone."""

import pytest
import torch

from rewarddance.core.types import Verdict
from rewarddance.lab.blind_spots import edited_pairs, judge_blind_spots
from rewarddance.world.corrupt import EDITS
from rewarddance.world.oracle import fidelity


def test_one_render_fulfils_the_prompt_and_the_other_does_not():
    pairs = [s for edit in EDITS for s in edited_pairs(edit, 3, seed=1)]
    assert [s.edit for s in pairs] == [e for e in EDITS for _ in range(3)]
    for s in pairs:
        assert fidelity(s.right.to_numpy(), s.prompt) > 0.9
        assert s.gap == pytest.approx(fidelity(s.right.to_numpy(), s.prompt) - fidelity(s.wrong.to_numpy(), s.prompt))
        assert s.gap > 0.05 or s.edit in ("style", "size", "add", "move")
    assert [s.prompt for s in edited_pairs(EDITS[0], 3, seed=1)] == [s.prompt for s in pairs[:3]]


class Partial:
    """A judge that reads the oracle's reasons, but those on the background."""

    def judge(self, asked):
        margins = []
        for c in asked:
            a, b = (self._score(c.prompt, m) for m in (c.candidate, c.reference))
            margins.append(a - b)
        return Verdict.from_margin(torch.tensor(margins))

    def _score(self, prompt, media):
        from rewarddance.world.oracle import judge

        found = judge(media.to_numpy(), prompt)
        missing = any("background: missing" in r for r in found.reasons)
        return found.fidelity / 0.4 if missing else found.fidelity


def test_the_blind_side_shows():
    found = judge_blind_spots(Partial(), num=6)
    assert "style" not in found
    assert found["background"]["right"] < 0.5 < found["drop"]["right"]
    assert found["background"]["margin"] == pytest.approx(0, abs=0.05)
    assert found["colour"]["right"] == 1.0
