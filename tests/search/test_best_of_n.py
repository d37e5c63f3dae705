import torch

from rewarddance.core.types import Verdict
from rewarddance.search.best_of_n import best_of_n, draw

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]


class Brightness:
    def judge(self, comparisons):
        return Verdict.from_margin(
            torch.stack([c.candidate.frames.mean() - c.reference.frames.mean() for c in comparisons])
        )


def test_the_judges_best_is_kept(generator):
    found = best_of_n(generator, Brightness(), PROMPTS, 3, torch.Generator().manual_seed(0), 2)
    for selection in found:
        levels = [m.frames.mean().item() for m in selection.candidates]
        assert selection.best == max(range(3), key=levels.__getitem__)
        assert selection.winner is selection.candidates[selection.best]
        assert abs(selection.margin.sum().item()) < 1e-4


def test_one_candidate_is_its_own_winner(generator):
    assert best_of_n(generator, Brightness(), PROMPTS, 1, torch.Generator().manual_seed(0), 2)[0].best == 0


def test_equal_streams_draw_equal_pictures(generator):
    a, b = (draw(generator, PROMPTS, 2, torch.Generator().manual_seed(5), 2) for _ in range(2))
    assert all(torch.equal(x.frames, y.frames) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
