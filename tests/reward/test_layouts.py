"""Layouts: what is shown, what is asked, and that it is asked of the right pictures."""

import re

import pytest
import torch

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.generative import GenerativeJudge
from rewarddance.reward.judge import new_judge
from rewarddance.reward.layouts import _PictureLists, dialogs_of, orders
from rewarddance.vlm.engine import Answers, Engine

PROMPT = "a red circle"


def pairs(pictures):
    return [Comparison(PROMPT, a, b, "fidelity") for a in pictures for b in pictures if a is not b]


def shown(dialog):
    return [p for p in dialog if not isinstance(p, str)]


def named(question):
    """The numbers of the candidate and the reference in a question about two of several pictures."""
    other, one = (int(n) for n in re.findall(r"image (\d+)", question))
    return one, other


def test_questions_that_only_words_tell_apart_differ_in_their_words(pictures):
    """And not in the order of words alone, which a small model does not read."""
    pair = [Comparison(PROMPT, pictures[0], pictures[1]), Comparison(PROMPT, pictures[1], pictures[0])]
    first, second = (sorted(re.findall(r"\w+", d[-1])) for d in dialogs_of(Context(layout="two_questions"), pair))
    assert first != second


@pytest.mark.parametrize("layout", ["two_questions", "listwise"])
def test_roles_are_for_strict_alone(layout):
    with pytest.raises(ValueError, match=f"layout {layout} asks about either picture by its number"):
        Context(layout=layout, template="embedded-roles")


def test_two_questions_share_everything_before_the_question(pictures):
    a, b, c = pictures[:3]
    first, other, second = dialogs_of(
        Context(layout="two_questions"),
        [Comparison(PROMPT, a, b), Comparison(PROMPT, a, c), Comparison(PROMPT, b, a)],
    )
    assert shown(first) == shown(second) == [b, a]
    assert shown(other) == [c, a]
    assert first[:-1] == second[:-1]
    assert first[-1] == "\nquestion: is image 2 the better one?"
    assert second[-1] == "\nquestion: is image 1 the better one?"


def test_listwise_shows_every_picture_once_and_names_the_right_ones(pictures):
    comparisons = pairs(pictures[:4])
    dialogs = dialogs_of(Context(layout="listwise"), comparisons)
    assert len({tuple(map(id, shown(d))) for d in dialogs}) == 1
    for c, d in zip(comparisons, dialogs, strict=True):
        first, second = named(d[-1])
        assert shown(d)[first - 1] is c.candidate
        assert shown(d)[second - 1] is c.reference
    opening = "instruction: prefer the picture that shows what the prompt asks for.\nanswer yes or no.\n"
    assert dialogs[0][0] == f"{opening}prompt: a red circle\nimage 1: "


def test_listwise_contexts_hold_no_more_than_they_may(pictures):
    comparisons = [*pairs(pictures[:5]), Comparison("a blue square", pictures[0], pictures[1])]
    dialogs = dialogs_of(Context(layout="listwise", max_pictures=3), comparisons)
    for c, d in zip(comparisons, dialogs, strict=True):
        assert len(shown(d)) <= 3
        assert any(m is c.candidate for m in shown(d))
        assert c.prompt in d[0]


def placed_plainly(context, comparisons):
    """Of the lists of a prompt the one that lacks fewest of the two pictures and has room, the first of such."""
    lists = [[]]
    for c in comparisons:
        pair = (c.reference, c.candidate)
        for pictures in sorted(lists, key=lambda known: sum(not any(x is m for m in known) for x in pair)):
            new = [x for x in pair if not any(x is m for m in pictures)]
            if len(pictures) + len(new) <= context.max_pictures:
                pictures += new
                break
        else:
            lists.append(list(pair))
    return sorted([m.key for m in pictures] for pictures in lists)


def test_places_are_found_at_once_as_by_looking_at_every_list():
    rng = torch.Generator().manual_seed(0)
    media = [Media(torch.rand(1, 3, 4, 4, generator=rng)) for _ in range(14)]
    for most in (2, 3, 5):
        context = Context(layout="listwise", max_pictures=most)
        drawn = torch.randint(14, (300, 2), generator=rng).tolist()
        comparisons = [Comparison(PROMPT, media[a], media[b], "fidelity") for a, b in drawn if a != b]
        contexts = {tuple(m.key for m in shown(d)) for d in dialogs_of(context, comparisons)}
        assert sorted(map(list, contexts)) == placed_plainly(context, comparisons)


def test_a_long_list_is_laid_out_in_time_that_grows_with_it():
    media = [Media(torch.zeros(1, 3, 4, 4)) for _ in range(4001)]
    lists = _PictureLists(8)
    for m in media[1:]:
        lists.with_pair((media[0], m))
    assert sum(len(x) for x in lists.lists) < 1.2 * len(media)
    assert all(len(known) <= 1 for known in lists.open_lists.values())


def test_orders_are_permutations():
    assert orders(3, 1) == [[0, 1, 2]]
    assert orders(3, 2) == [[0, 1, 2], [2, 1, 0]]
    assert all(sorted(w) == [0, 1, 2, 3] for w in orders(4, 5))


class Oracle(Engine):
    """Answers by what is truly shown: brighter is better, with a liking for yes and for the first place."""

    def answer_logits(self, dialogs, words):
        rows = []
        for d in dialogs:
            media, text = shown(d), d[-1]
            if "against" in text:
                x, y = (media[n - 1] for n in named(text))
            else:
                y, x = media[::-1] if "image 1" in text else media
            place = 0.3 if x is media[0] else -0.3
            margin = 50 * (x.frames.mean() - y.frames.mean()) + 0.7 + place
            rows.append(torch.stack([torch.nn.functional.logsigmoid(margin), torch.nn.functional.logsigmoid(-margin)]))
        logp = torch.stack(rows)
        return Answers(logp, logp)


@pytest.mark.parametrize("layout", ["strict", "two_questions", "listwise"])
def test_verdicts_belong_to_their_comparisons_and_yes_bias_cancels(layout, backbone, pictures):
    spec = JudgeSpec(context=Context(layout=layout), trained=True)
    judge = new_judge(spec, backbone, strict=True)
    judge.single = GenerativeJudge(Oracle(backbone), spec.context)
    comparisons = pairs(pictures[:5])
    margins = judge.judge(comparisons).margin
    wanted = torch.stack([50 * (c.candidate.frames.mean() - c.reference.frames.mean()) for c in comparisons])
    place = 0.0 if layout == "strict" else 0.3  # a fixed place is not cancelled, only averaged over permutations
    assert (margins - wanted).abs().max() <= place + 1e-4
    back = judge.judge([c.swapped() for c in comparisons]).margin
    if layout == "strict":
        assert torch.allclose(margins, -back, atol=1e-4)


@pytest.mark.parametrize("layout", ["two_questions", "listwise"])
def test_layouts_process_fewer_tokens(layout, backbone, pictures):
    work = {}
    for name in ("strict", layout):
        engine = Engine(backbone)
        engine.answer_logits(dialogs_of(Context(layout=name), pairs(pictures)), ("yes", "no"))
        work[name] = engine.counts
        assert engine.counts.images == len(pictures)
    assert work[layout].tokens < 0.85 * work["strict"].tokens
