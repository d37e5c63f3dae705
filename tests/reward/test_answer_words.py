"""P(yes) is summed over the spellings of each answer word, and so is the mass of both words."""

import math

import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.types import Comparison
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.judge import new_judge
from rewarddance.vlm.engine import Engine

YES, NO = ("yes", "Yes", " yes", "YES"), ("no", " no", "nowhere at all")


def single_tokens(backbone, words):
    ids = [backbone.tokenizer(w, add_special_tokens=False)["input_ids"] for w in words]
    return [i[0] for i in ids if len(i) == 1]


def plain_logits(backbone, dialog):
    e = backbone.encoder.chat([("user", dialog)])
    pixels = torch.cat([backbone.prepare.frames(m.frames) for m, _ in e.images])
    return backbone.model(input_ids=torch.tensor([e.ids]), pixel_values=pixels).logits[0, -1].double()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "exact rows"])
def test_words_have_the_probability_of_all_their_spellings(autocast, backbone, pictures):
    dialogs = [("prompt: a cat\n", x, y, "better?") for x, y in (pictures[:2], pictures[2:4])]
    yes, no = single_tokens(backbone, YES), single_tokens(backbone, NO)
    assert len(yes) >= 2
    assert len(no) >= 2
    with torch.no_grad():
        answers = Engine(backbone, autocast=autocast).answer_logits(dialogs, [YES, NO])
        for i, dialog in enumerate(dialogs):
            p = plain_logits(backbone, dialog).softmax(-1)
            wanted = [sum(p[t].item() for t in ids) for ids in (yes, no)]
            rel = 1e-4 if autocast is None else 0.05
            assert answers.logp[i].exp().tolist() == pytest.approx(wanted, rel=rel)
            assert answers.mass[i].item() == pytest.approx(sum(wanted), rel=rel)


def given_logits(backbone, monkeypatch, probabilities):
    """Let the head give these probabilities to these words everywhere, and share the rest among all other tokens."""
    ids = {word: backbone.tokenizer(word, add_special_tokens=False)["input_ids"] for word in probabilities}
    assert all(len(i) == 1 for i in ids.values())
    rest = 1 - sum(probabilities.values())
    p = torch.full((len(backbone.tokenizer),), rest / (len(backbone.tokenizer) - len(ids)))
    for word, value in probabilities.items():
        p[ids[word][0]] = value
    monkeypatch.setattr(type(backbone), "logits", lambda self, hidden: p.log().expand(len(hidden), -1) + 3.0)


def test_the_reward_in_closed_form(backbone, pictures, monkeypatch):
    given_logits(backbone, monkeypatch, {"yes": 0.30, " yes": 0.15, "no": 0.10, " no": 0.05})
    context = Context(yes="yes", no="no")  # with capitals and blanks, as far as they are single tokens
    judge = new_judge(JudgeSpec(context=context), backbone, strict=True)
    comparisons = [Comparison("a cat", pictures[0], pictures[1], "fidelity")]
    verdict = judge.single.judge(comparisons)
    others = [w for w in ("Yes", " Yes", "No", " No") if len(single_tokens(backbone, [w])) == 1]
    small = 0.40 / (len(backbone.tokenizer) - 4)
    yes = 0.45 + small * sum("Y" in w for w in others)
    no = 0.15 + small * sum("N" in w for w in others)
    assert verdict.logp_yes.item() == pytest.approx(math.log(yes), abs=1e-5)
    assert verdict.logp_no.item() == pytest.approx(math.log(no), abs=1e-5)
    assert verdict.reward.item() == pytest.approx(yes / (yes + no), abs=1e-5)
    assert verdict.answer_mass.item() == pytest.approx(yes + no, abs=1e-5)
    assert verdict.refused == {}  # with one spelling alone the mass would be 0.4, and the answer refused
    narrow = new_judge(JudgeSpec(), backbone, strict=True).single.judge(comparisons)
    assert narrow.answer_mass.item() == pytest.approx(0.4, abs=1e-5)
    assert "probability 0.40 on both" in narrow.refused[0]


def test_a_temperature_leaves_the_mass_and_divides_the_log_odds(backbone, pictures, monkeypatch):
    given_logits(backbone, monkeypatch, {"yes": 0.6, "no": 0.2})
    judge = new_judge(JudgeSpec(temperature=2.0), backbone)
    verdict = judge.single.judge([Comparison("a cat", pictures[0], pictures[1], "fidelity")])
    odds = math.sqrt(3)
    assert verdict.answer_mass.item() == pytest.approx(0.8, abs=1e-5)
    assert verdict.logp_yes.exp().item() == pytest.approx(0.8 * odds / (1 + odds), abs=1e-5)
    assert verdict.logp_no.exp().item() == pytest.approx(0.8 / (1 + odds), abs=1e-5)


def test_a_spelling_counts_once_and_only_if_it_is_one_token(backbone):
    engine = Engine(backbone)
    assert engine.word_ids(["yes", "yes", "no and yes"]) == single_tokens(backbone, ["yes"])
    with pytest.raises(ConfigError, match="no single token for the answer word 'no and yes' or 'yes and no'"):
        engine.word_ids(["no and yes", "yes and no"])
    with pytest.raises(ConfigError, match="no single token for the answer word 'yes indeed' or 'Yes indeed'"):
        new_judge(JudgeSpec(context=Context(yes="yes indeed")), backbone)
