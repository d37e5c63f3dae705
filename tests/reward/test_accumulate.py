"""Passes that fit the memory add up to the whole step; what goes wrong is named."""

from dataclasses import replace

import pytest
import torch

from rewarddance.core.errors import RunError
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Verdict
from rewarddance.reward.accumulate import Accumulator


class Linear:
    """One weight on the difference of brightness; `room` comparisons fit the memory."""

    def __init__(self, room=10**6, error=None):
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.room = room

    def judge(self, comparisons):
        if len(comparisons) > self.room:
            raise self.error
        gaps = torch.stack([c.candidate.frames.mean() - c.reference.frames.mean() for c in comparisons])
        return Verdict.from_margin(self.weight * gaps)


@pytest.fixture
def records(pictures):
    def record(i, k):
        choices = tuple(Choice(a, b, float((a + b + i) % 2)) for a in range(k) for b in range(a + 1, k))
        return PreferenceRecord(f"r{i}", "p", tuple(pictures[:k]), choices)

    return [record(0, 3), record(1, 2), record(2, 4), record(3, 3)]


def run(model, records, size):
    said = []
    accumulate = Accumulator(model, [model.weight], "generative_pairwise", 0.0, size, said.append)
    figures = accumulate(records)
    return model.weight.grad.item(), figures, said


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_passes_give_the_gradient_and_figures_of_the_whole(records, size):
    whole, parts = run(Linear(), records, 4), run(Linear(), records, size)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for key in ("loss", "accuracy", "answer_mass"):
        assert parts[1][key] == pytest.approx(whole[1][key], rel=1e-5)


def main_memory_ran_out():
    """torch's own error."""
    try:
        torch.empty(1 << 50, dtype=torch.uint8)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), main_memory_ran_out()], ids=["device", "main"])
def test_memory_that_runs_out_halves_the_pass_and_is_said_once(records, error):
    whole = run(Linear(), records, 4)
    model, said = Linear(room=12, error=error), []
    accumulate = Accumulator(model, [model.weight], "generative_pairwise", 0.0, 4, said.append)
    accumulate(records)
    assert model.weight.grad.item() == pytest.approx(whole[0], rel=1e-5)
    assert said == [
        "out of memory: going on with 2 records in a pass",
        "out of memory: going on with 1 records in a pass",
    ]
    accumulate(records)
    assert len(said) == 2


def test_a_record_too_large_for_the_memory_is_named(records):
    with pytest.raises(RunError, match=r"single record in a pass .largest: r2"):
        run(Linear(room=1), records, 4)


def test_records_without_a_finite_loss_are_named(records, pictures):
    broken = pictures[0].frames.clone()
    broken[0, 0, 0, 0] = float("nan")
    bad = PreferenceRecord("bad-7", "p", (type(pictures[0])(broken), pictures[1]), (Choice(0, 1, 1.0),))
    with pytest.raises(RunError, match=r"1 of 5 records .bad-7."):
        run(Linear(), [*records, bad], 5)


def test_a_record_without_choices_alone_in_a_pass_changes_nothing(records, pictures):
    """One record a pass; the empty one has no question, so no gradient, no metric and no pass."""
    empty = PreferenceRecord("empty", "p", tuple(pictures[:2]), ())
    whole = run(Linear(), records, 1)
    with_empty = run(Linear(), [records[0], empty, *records[1:]], 1)
    assert with_empty[0] == pytest.approx(whole[0], rel=1e-6)
    assert with_empty[1] == pytest.approx(whole[1], rel=1e-6)


def test_a_step_of_records_without_choices_has_no_gradient_and_no_metrics(pictures):
    empty = PreferenceRecord("empty", "p", tuple(pictures[:2]), ())
    model = Linear()
    accumulate = Accumulator(model, [model.weight], "generative_pairwise", 0.0, 1, print)
    assert accumulate([empty, empty]) == {}
    assert model.weight.grad is None


def test_questions_that_cannot_be_asked_are_left_out_and_counted(records):
    class Picky(Linear):
        def problem(self, comparison):
            return "unclear" if comparison.prompt == "long" else None

    long = [replace(records[0], prompt="long"), *records[1:]]
    model = Picky()
    figures = Accumulator(model, [model.weight], "generative_pairwise", 0.0, 4, print)(long)
    wanted = run(Linear(), records[1:], 4)
    assert figures.pop("num_left_out") == 6  # three choices in both orders
    assert figures == pytest.approx(wanted[1], rel=1e-6)
    assert model.weight.grad.item() == pytest.approx(wanted[0], rel=1e-6)
