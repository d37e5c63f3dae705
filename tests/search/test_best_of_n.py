import torch

from rewarddance.core.types import Verdict
from rewarddance.search.best_of_n import draw_candidates, select

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]


class Brightness:
    def judge(self, comparisons):
        return Verdict.from_margin(
            torch.stack([c.candidate.frames.mean() - c.reference.frames.mean() for c in comparisons])
        )


def test_the_judges_best_is_kept(generator):
    rows = draw_candidates(generator, PROMPTS, 3, torch.Generator().manual_seed(0), 2)
    for selection in select(Brightness(), PROMPTS, rows):
        levels = [m.frames.mean().item() for m in selection.candidates]
        assert selection.best == max(range(3), key=levels.__getitem__)
        assert abs(selection.margin.sum().item()) < 1e-4


def test_one_candidate_is_its_own_winner(generator):
    rows = draw_candidates(generator, PROMPTS, 1, torch.Generator().manual_seed(0), 2)
    assert select(Brightness(), PROMPTS, rows)[0].best == 0


def test_equal_streams_draw_equal_pictures_in_any_batch(generator):
    a, b = (draw_candidates(generator, PROMPTS, 2, torch.Generator().manual_seed(5), 2, b) for b in (1, 128))
    for x, y in zip([m for row in a for m in row], [m for row in b for m in row], strict=True):
        torch.testing.assert_close(x.frames, y.frames, atol=1e-4, rtol=0)


class Blind:
    """Refuses every comparison of the second prompt, and comparisons with the first candidate of the first."""

    def __init__(self, pictures):
        self.pictures = pictures

    def judge(self, comparisons):
        verdict = Brightness().judge(comparisons)
        first = self.pictures[0]
        return verdict.refuse(
            {
                i: "unclear"
                for i, c in enumerate(comparisons)
                if c.prompt == PROMPTS[1] or c.candidate is first or c.reference is first
            }
        )


def test_refused_comparisons_leave_candidates_out_and_are_counted(generator):
    rows = draw_candidates(generator, PROMPTS, 3, torch.Generator().manual_seed(5), 2)
    first, second = select(Blind(rows[0]), PROMPTS, rows)
    assert first.best == max((1, 2), key=lambda i: rows[0][i].frames.mean().item())
    assert first.num_refused == 2
    assert first.margin.isnan().tolist() == [True, False, False]
    assert (second.best, second.num_refused) == (None, 3)
