"""Labelled comparisons before the question: the same answer as on the dialog written out, and paid for once."""

from dataclasses import replace

import pytest
import torch
from small_runs import reward_config

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.types import Comparison
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.load import load_backbone
from rewarddance.jobs.train import train_judge
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.judge import new_judge
from rewarddance.reward.saved import labelled_examples, load_judge_folder, save_judge
from rewarddance.reward.training import prompts_of, set_aside

QUESTION = (
    "instruction: prefer the picture that shows what the prompt asks for.\nanswer yes or no.\nprompt: {}\n"
    "image 1: {}\nimage 2: {}\nquestion: is image 2 the better one?"
)


@pytest.fixture
def eight_bits(pictures):
    """Pictures that a file keeps exactly."""
    return [Media.from_bytes(m.to_bytes()) for m in pictures]


def examples(pictures):
    a, b, c, d = pictures[:4]
    return [Comparison("a red circle", b, a, "fidelity", 0.9), Comparison("two stars", d, c, "fidelity", 0.1)]


def written_out(backbone, pairs, answers):
    """Margin after a chat that is written as one string, by one plain forward. The last pair has no answer."""
    picture = "<img>" + "<IMG_CONTEXT>" * backbone.model.config.image_seq_length + "</img>"
    text, media = "", []
    for c, answer in zip(pairs, [*answers, None], strict=True):
        text += f"<|user|>{QUESTION.format(c.prompt, picture, picture)}<|assistant|>"
        text += "" if answer is None else f"{answer}<|end|>"
        media += [c.reference, c.candidate]
    ids = backbone.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    pixels = torch.cat([backbone.prepare.frames(m.frames) for m in media])
    logits = backbone.model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    yes, no = (backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("yes", "no"))
    return (logits[yes] - logits[no]).item()


def test_margins_are_those_of_the_dialog_written_out(backbone, pictures):
    judge = new_judge(JudgeSpec(), backbone, examples=examples(pictures))
    comparisons = [
        Comparison(p, x, y, "fidelity") for p in ("a cat", "a dog") for x, y in (pictures[4:6], pictures[5:7])
    ]
    margins = judge.single.judge(comparisons).margin.tolist()
    wanted = [written_out(backbone, [*examples(pictures), c], ["yes", "no"]) for c in comparisons]
    assert margins == pytest.approx(wanted, abs=1e-5)
    without = new_judge(JudgeSpec(), backbone).single.judge(comparisons).margin.tolist()
    assert without == pytest.approx([written_out(backbone, [c], []) for c in comparisons], abs=1e-5)
    assert abs(margins[0] - without[0]) > 1e-3
    turned = [replace(e, label=1 - e.label) for e in examples(pictures)]
    wrong = new_judge(JudgeSpec(), backbone, examples=turned).single.judge(comparisons[:1]).margin.item()
    assert wrong == pytest.approx(written_out(backbone, [*turned, comparisons[0]], ["no", "yes"]), abs=1e-5)


def test_all_questions_share_the_examples(backbone, pictures):
    shown = examples(pictures)
    comparisons = [Comparison("a cat", x, y, "fidelity") for x in pictures[4:] for y in pictures[4:] if x is not y]
    work = {}
    for name, given in (("with", shown), ("without", [])):
        judge = new_judge(JudgeSpec(), backbone, examples=given)
        judge.single.judge(comparisons)
        work[name] = judge.engine.counts
    whole = new_judge(JudgeSpec(), backbone, examples=shown).single._dialogs(comparisons[:1])[0]
    alone = new_judge(JudgeSpec(), backbone).single._dialogs(comparisons[:1])[0]
    count = judge.engine.num_tokens
    assert work["with"].images == work["without"].images + 4
    assert work["with"].tokens - work["without"].tokens == count(whole) - count(alone)
    assert work["with"].forwards == 1


def test_examples_are_kept_with_the_judge(backbone, eight_bits, tmp_path):
    shown = examples(eight_bits)
    judge = new_judge(JudgeSpec(trained=True), backbone, examples=shown)
    comparisons = [Comparison("a cat", eight_bits[4], eight_bits[5], "fidelity")]
    before = judge.judge(comparisons).margin.detach()
    again = load_judge_folder(save_judge(judge, tmp_path), precision="fp32")
    again.single.strict = False
    torch.testing.assert_close(again.judge(comparisons).margin, before, atol=1e-5, rtol=0)
    kept = [(e.prompt, e.criterion, e.candidate.key, e.reference.key) for e in again.single.examples]
    assert kept == [(e.prompt, e.criterion, e.candidate.key, e.reference.key) for e in shown]
    assert [e.label for e in again.single.examples] == pytest.approx([0.9, 0.1])


def test_pointwise_examples_show_one_picture(backbone, eight_bits, tmp_path):
    shown = [replace(e, reference=None) for e in examples(eight_bits)]
    spec = JudgeSpec(paradigm="generative_pointwise", trained=True)
    judge = new_judge(spec, backbone, examples=shown)
    comparisons = [Comparison("a cat", eight_bits[4], criterion="fidelity")]
    again = load_judge_folder(save_judge(judge, tmp_path), precision="fp32")
    again.single.strict = False
    assert [e.reference for e in again.single.examples] == [None, None]
    torch.testing.assert_close(
        again.judge(comparisons).margin, judge.judge(comparisons).margin.detach(), atol=1e-5, rtol=0
    )
    dialog = judge.single._dialogs(comparisons)[0]
    assert [p.text for p in dialog if hasattr(p, "text")] == ["yes", "no"]
    assert len([p for p in dialog if isinstance(p, Media)]) == 3


@pytest.mark.parametrize("paired", [True, False])
def test_examples_of_image_to_video_keep_their_first_picture(backbone, eight_bits, tmp_path, paired):
    condition, *stills = eight_bits[:3]
    a, b = (Media(m.frames.repeat(5, 1, 1, 1), fps=8.0) for m in stills)
    record = PreferenceRecord("r", "a cat", (a, b), (Choice(0, 1, 0.9),), "fidelity", condition=condition)
    shown = labelled_examples([record], 1, paired)
    assert shown[0].condition is condition
    spec = JudgeSpec(paradigm="generative_pairwise" if paired else "generative_pointwise", trained=True)
    again = load_judge_folder(save_judge(new_judge(spec, backbone, examples=shown), tmp_path), precision="fp32")
    assert again.single.examples[0].condition.key == condition.key
    assert again.single.examples[0].candidate.is_clip


def test_examples_count_towards_the_longest_question(backbone, pictures):
    long = replace(examples(pictures)[0], prompt="a red circle " * 680)
    comparison = Comparison("a cat", pictures[4], pictures[5], "fidelity")
    assert new_judge(JudgeSpec(), backbone).problem(comparison) is None
    reason = new_judge(JudgeSpec(), backbone, examples=[long]).problem(comparison)
    assert "and the model takes 2,048" in reason


def record(i, *labels):
    pictures = tuple(Media(torch.full((1, 3, 4, 4), (i + k) / 40)) for k in range(3))
    pairs = [(0, 1), (1, 2), (0, 2)]
    made = tuple(Choice(a, b, label) for (a, b), label in zip(pairs, labels, strict=False))
    return PreferenceRecord(f"r{i}", f"prompt {i}", pictures, made, "fidelity")


def test_examples_are_clear_choices_with_yes_and_no_in_turn():
    records = [record(0, 0.5, 0.79), record(1, 0.6, 0.1, 1.0), record(2, 0.8), record(3, 0.2), record(4, 1.0)]
    chosen = labelled_examples(records, 3, paired=True)
    assert [c.prompt for c in chosen] == ["prompt 1", "prompt 2", "prompt 3"]
    assert [c.label for c in chosen] == pytest.approx([0.9, 0.2, 0.8])
    first, second, third = (records[i].media for i in (1, 2, 3))
    assert (chosen[0].candidate, chosen[0].reference) == (first[2], first[1])
    assert (chosen[1].candidate, chosen[1].reference) == (second[1], second[0])
    assert (chosen[2].candidate, chosen[2].reference) == (third[1], third[0])
    alone = labelled_examples(records, 2, paired=False)
    assert [(c.candidate, c.reference, c.label) for c in alone] == [
        (first[2], None, pytest.approx(0.9)),
        (second[1], None, pytest.approx(0.2)),
    ]
    assert len(labelled_examples(records, 9, paired=True)) == 4
    assert labelled_examples(records, 0, paired=True) == []


def test_training_keeps_its_examples_apart_from_what_it_learns(vlm_folder, data_folder, quick, tmp_path):
    records = RecordTable.open(data_folder / "train.parquet")
    config = reward_config(vlm_folder, data_folder, quick, num_steps=1)
    config = config.model_copy(update={"context": Context(examples=2), "patience": 0})
    train_judge(config, load_backbone(vlm_folder), records, {}, tmp_path / "run")
    kept = load_judge_folder(tmp_path / "run" / "model").single.examples
    assert [c.label > 0.5 for c in kept] == [True, False]
    learnt, _, showing = set_aside(records, config)
    assert {c.prompt for c in kept} <= set(prompts_of(showing))
    assert not {c.prompt for c in kept} & set(prompts_of(learnt))
    ties = [replace(r, choices=tuple(replace(c, label=0.5) for c in r.choices)) for r in records]
    with pytest.raises(InputError, match=r"context.examples 2: only 0 of the records set aside have a clear choice"):
        train_judge(config, load_backbone(vlm_folder), ties, {}, tmp_path / "other")
