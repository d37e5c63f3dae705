"""Long lists stream: what is held at once is bounded, and nothing is done twice for it."""

import pytest
import torch
from dialogs import WORDS, question
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.portions import portions
from rewarddance.vlm.vision_pass import VisionPass

SHOWN = [Media(torch.full((1 + i % 2, 3, 2, 2), i / 8)) for i in range(6)]
DIALOGS = st.lists(st.tuples(st.sampled_from("ab"), *[st.sampled_from(SHOWN)] * 2), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(DIALOGS, st.integers(1, 9), st.integers(8, 40))
def test_portions_hold_everything_once_within_bounds_and_know_what_comes_again(dialogs, most, room):
    found = list(portions(dialogs, most, lambda m: {m.key: 2 * m.num_frames}, room))
    assert sorted(i for p in found for i in p.rows) == list(range(len(dialogs)))
    shown = [{m for i in p.rows for m in dialogs[i][1:]} for p in found]
    for number, p in enumerate(found):
        assert len(p.rows) <= most
        assert sum(2 * m.num_frames for m in shown[number]) <= room  # no single dialog takes more than 8
        before, after = set().union(*shown[: number + 1]), set().union(*shown[number + 1 :])
        again = {m.key: 2 * m.num_frames for m in before & after}
        assert p.needed_later <= set(again)
        assert sum(again[k] for k in p.needed_later) <= room
        if number == 0 and sum(again.values()) <= room:
            assert p.needed_later == set(again)
    texts = [dialogs[i][0] for p in found for i in p.rows]
    assert texts == sorted(texts)


@pytest.mark.parametrize("trained", [False, True])
def test_a_long_list_in_portions_gives_the_same_and_sees_every_picture_once(trained, backbone, pictures, monkeypatch):
    backbone.module.requires_grad_(trained)
    dialogs = [
        question(f"prompt {i % 2}", *pair) for i in range(4) for pair in zip(pictures, pictures[1:], strict=False)
    ]
    tables, table = [], VisionPass.table
    monkeypatch.setattr(VisionPass, "table", lambda self, shown: tables.append(len(shown.frames)) or table(self, shown))
    with torch.no_grad():
        whole, parts = Engine(backbone), Engine(backbone, portion=3)
        expected = whole.answer_logits(dialogs, WORDS).logits
        at_once = tables.pop()
        for _ in range(2):  # and again, with nothing left over from the first call
            found = parts.answer_logits(dialogs, WORDS).logits
            assert parts.counts.images == whole.counts.images == at_once
    assert len(tables) > 2
    assert max(tables) < at_once
    assert not parts._vision._held
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_changed_between_calls_are_looked_at_with_anew(backbone, pictures):
    """Nothing held for one call's portions, or in a cache while weights are trained, is taken for another's."""
    engine = Engine(backbone, portion=1, image_cache=8)
    dialogs = [question("x", pictures[0], p) for p in pictures[1:3]]
    with torch.no_grad():
        before = engine.answer_logits(dialogs, WORDS).logits
        for p in backbone.model.model.vision_tower.parameters():
            p.mul_(1.5)
        backbone.module.requires_grad_(False)
        after = engine.answer_logits(dialogs, WORDS).logits
        fresh = Engine(backbone).answer_logits(dialogs, WORDS).logits
    torch.testing.assert_close(after, fresh, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)


def test_what_a_call_that_failed_held_is_not_taken_for_the_next_ones(backbone, pictures, monkeypatch):
    engine = Engine(backbone, portion=1)
    dialogs = [question("x", pictures[0], p) for p in pictures[1:4]]
    with torch.no_grad():
        with monkeypatch.context() as broken:
            calls, run = [], Engine._packed_pass
            fail = ValueError("lost")

            def once(self, *args):
                calls.append(1)
                if len(calls) > 1:
                    raise fail
                return run(self, *args)

            broken.setattr(Engine, "_packed_pass", once)
            with pytest.raises(ValueError, match="lost"):
                engine.answer_logits(dialogs, WORDS)
        assert engine._vision._held  # the first portion's picture, for the portions that never came
        for p in backbone.model.model.vision_tower.parameters():
            p.mul_(1.5)
        found, fresh = (e.answer_logits(dialogs, WORDS).logits for e in (engine, Engine(backbone)))
    torch.testing.assert_close(found, fresh, rtol=1e-4, atol=1e-5)


def test_a_frozen_judge_need_not_be_told_that_no_gradient_is_wanted(backbone, pictures, monkeypatch):
    backbone.module.requires_grad_(False)
    dialogs = [question("x", pictures[0], p) for p in pictures[1:4]]
    engine, tables, table = Engine(backbone, portion=1), [], VisionPass.table
    monkeypatch.setattr(VisionPass, "table", lambda self, shown: tables.append(len(shown.frames)) or table(self, shown))
    engine.answer_logits(dialogs, WORDS)
    assert len(tables) == 3
    wanted = Media(pictures[1].frames.clone().requires_grad_())
    found = engine.answer_logits([question("x", pictures[0], wanted), *dialogs], WORDS).logits
    assert len(tables) == 4  # one graph
    found[0].sum().backward()
    assert wanted.frames.grad.abs().sum() > 0
