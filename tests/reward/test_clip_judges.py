"""Judges of clips: their words, what they refuse, what is saved, and a whole small training."""

import json
import re
import shutil

import pytest
import torch

from rewarddance.apps.commands import JudgeFlags
from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.data.build import build_clips
from rewarddance.jobs.load import load_judge
from rewarddance.jobs.train import held_out_sets, train_from_data
from rewarddance.reward.config import JudgeSpec, columns_of
from rewarddance.reward.context import Context
from rewarddance.reward.judge import new_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.world.build.clip_preferences import CHANGES, ClipPreferencesConfig


def clip(seed=0, fps=8.0, num=9):
    return Media(torch.rand(num, 3, 48, 48, generator=torch.Generator().manual_seed(seed)), fps)


@pytest.fixture
def pair():
    return Comparison("a red circle moving left", clip(0), clip(1), "fidelity")


def texts(dialog):
    return "|".join(p if isinstance(p, str) else "*" for p in dialog)


PICTURE_QUESTIONS = {
    "embedded": "instruction: prefer the picture that shows what the prompt asks for.\nanswer yes or no.\n"
    "prompt: a red circle\nimage 1: |*|\nimage 2: |*|\nquestion: is image 2 the better one?",
    "embedded-roles": "instruction: prefer the picture that shows what the prompt asks for.\n"
    "prompt: a red circle\nreference: |*|\ncandidate: |*|\n"
    "question: is the candidate better than the reference? answer yes or no.",
    "rewarddance": "You are an expert judge of generated images. Criterion: Faithfulness to the prompt. Check every "
    "object, count, attribute, colour, size, relation, action and written text that the prompt names. Missing, extra "
    "or wrong things count against an image. Ignore beauty.\nAnswer with one word, yes or no.\nPrompt: a red circle\n"
    "Image 1: |*|\nImage 2: |*|\nQuestion: by this criterion, is image 2 better than the other image for the prompt?",
}


@pytest.mark.parametrize("template", PICTURE_QUESTIONS)
def test_questions_about_pictures_are_what_they_were(template, pictures):
    comparison = Comparison("a red circle", pictures[0], pictures[1], "fidelity")
    assert texts(Context(template=template).render(comparison)) == PICTURE_QUESTIONS[template]


WORDS = {"embedded": "clip", "embedded-roles": "clip", "rewarddance": "video"}


@pytest.mark.parametrize("template", WORDS)
def test_questions_about_clips_say_so(template, pair, pictures):
    context = Context(template=template)
    questions = [context.render(pair), context.render(Comparison(pair.prompt, pair.candidate, None, "motion"))]
    if context.words.by_number:
        questions.append(context.render_reversed(pair))
        questions.append(context.render_listed(pair, [pair.candidate, pair.reference]))
    i2v = Comparison(pair.prompt, pair.candidate, pair.reference, "first_frame", condition=pictures[0])
    questions.append(context.render(i2v))
    for question in questions:
        text = texts(question)
        assert WORDS[template] in text.lower()
        # the embedded VLM learns about clips as numbered images
        numbered = r"given picture|image \d" if template == "embedded" else "given picture"
        assert not re.search("image|picture", re.sub(numbered, "", text.lower())), text
    assert texts(context.render(i2v)).count("*") == 3
    assert context.answer(True, "the candidate moves", pair.candidate)[2] != ""


def test_own_words_are_used_for_both(pair, tmp_path):
    from rewarddance.reward.wording import FOLDER

    (tmp_path / "mine.yaml").write_text((FOLDER / "embedded.yaml").read_text().replace("image", "thing"))
    assert "thing 2" in texts(Context(template=str(tmp_path / "mine.yaml")).render(pair))


def test_what_cannot_be_judged_is_one_line(backbone, pair, pictures):
    judge = new_judge(JudgeSpec(paradigm="generative_pairwise"), backbone)
    no_rate = Media(pair.candidate.frames, origin="a.mp4")
    comparisons = [
        Comparison("x", no_rate, pair.reference, "fidelity"),
        Comparison("x", pair.candidate, pictures[0], "fidelity"),
        Comparison("x", pair.candidate, pair.reference, "style"),
        Comparison("x", pictures[0], pictures[1], "motion"),
        Comparison("x", pair.candidate, pair.reference, "motion"),
    ]
    refused = judge.judge(comparisons).refused
    assert refused[0].startswith("a.mp4: a clip of 9 frames without frames per second; give `fps`")
    assert refused[1] == "a clip and a picture cannot be compared; give two of a kind"
    assert "no instruction for criterion 'style'; known: overall, fidelity, motion" in refused[2]
    assert "no instruction for criterion 'motion'" in refused[3]
    assert 4 not in refused


def test_a_head_of_ratings_has_the_criteria_of_clips():
    pictures = columns_of("regression", Context())
    assert "motion" not in pictures
    assert columns_of("regression", Context(), ("clip",)) == tuple(Context().clip_words.criteria)
    assert columns_of("regression", Context(), ("picture", "clip"))[: len(pictures)] == pictures
    assert "motion" in columns_of("regression", Context(), ("picture", "clip"))


@pytest.fixture(scope="module")
def trained(vlm_folder, tmp_path_factory):
    """(data folder, run folder) of a few steps on clips."""
    from rewarddance.core.loop_config import LoopConfig, OptimConfig

    out = tmp_path_factory.mktemp("clips")
    build_clips(ClipPreferencesConfig(num_prompts=6, clips=2), 2, out / "data", changes=1)
    config = RewardConfig(
        backbone=str(vlm_folder),
        data=str(out / "data"),
        prompts_per_step=2,
        pointwise_weight=0.5,
        clips=ClipFrames(fps=4),
        loop=LoopConfig(num_steps=2, validate_every=2, save_every=2),
        optim=OptimConfig(lr=1e-3),
    )
    train_from_data(config, out / "run")
    return out / "data", out / "run"


def test_a_trained_judge_keeps_its_frames_and_words(trained, pair):
    judge = load_judge(trained[1])
    assert judge.spec.kinds == ("clip",)
    assert judge.spec.clips == judge.engine.backbone.encoder.clips == ClipFrames(fps=4)
    assert (
        judge.spec.context.clip_wording.pairwise == "prompt: {prompt}\nquestion: is image {candidate} the better one?"
    )
    assert judge.engine.num_image_tokens(pair.candidate) == 5 * judge.engine.backbone.model.config.image_seq_length
    fewer = load_judge(trained[1], clips=ClipFrames(num_frames=3))
    assert fewer.engine.num_image_tokens(pair.candidate) == 3 * fewer.engine.backbone.model.config.image_seq_length


def test_another_number_of_frames_a_second_keeps_the_limit_of_frames(trained, pair, tmp_path):
    folder = shutil.copytree(trained[1] / "model", tmp_path / "model")
    spec = json.loads((folder / "judge.json").read_text())
    spec["clips"] = ClipFrames(fps=2, max_frames=3).model_dump()
    (folder / "judge.json").write_text(json.dumps(spec))
    judge = JudgeFlags.read("rewarddance score", ["--judge", str(folder), "--clip-fps", "8"]).load(compile=False)
    assert judge.spec.clips == judge.engine.backbone.encoder.clips == ClipFrames(fps=8, max_frames=3)
    assert judge.engine.num_images(pair.candidate) == 3  # of 9 frames at 8 a second
    assert ClipFrames(num_frames=3).at(4) == ClipFrames(fps=4)


def test_a_judge_of_clips_refuses_pictures_and_the_reverse(trained, pair, pictures):
    judge = load_judge(trained[1])
    on_clips, on_pictures = (
        judge.judge([comparison]).refused.get(0, "")
        for comparison in (pair, Comparison("x", pictures[0], pictures[1], "overall"))
    )
    assert "trained on" not in on_clips
    assert on_pictures == "a picture; this judge was trained on clips"
    judge.spec = judge.spec.model_copy(update={"kinds": ("picture",)})
    assert judge.judge([pair]).refused[0] == "a clip of 9 frames; this judge was trained on pictures"


def test_evaluation_tells_what_was_changed(trained):
    judge = load_judge(trained[1])
    judge.single.strict = False  # after two steps it does not know its answer words
    sets = held_out_sets(trained[0], frozenset(), 0, 100)
    figures = measure_judge(judge, sets["changes"][0])
    assert {f"accuracy_{change}" for change in CHANGES} < set(figures)


def test_files_of_clips_are_scored_and_ranked(trained, vlm_folder, tmp_path, capsys):
    """A scalar judge, which needs no answer words, by the command line."""
    from rewarddance.apps.cli import main
    from rewarddance.core.loop_config import LoopConfig, OptimConfig

    data = str(trained[0])
    loop = LoopConfig(num_steps=3, validate_every=3, save_every=3)
    config = RewardConfig(backbone=str(vlm_folder), data=data, paradigm="bradley_terry", prompts_per_step=2,
                          calibration_prompts=0, clips=ClipFrames(fps=4), loop=loop,
                          optim=OptimConfig(lr=1e-2))  # fmt: skip
    train_from_data(config, tmp_path / "run")
    for name, seed in (("a.mp4", 0), ("b.webm", 1), ("c.gif", 2)):
        clip(seed).save(tmp_path / name)
    files = [str(tmp_path / n) for n in ("a.mp4", "b.webm", "c.gif")]
    prompt_and_judge = ["--prompt", "a red circle moving left", "--judge", str(tmp_path / "run")]
    assert main(["score", *files[:2], *prompt_and_judge]) == 0
    forward = json.loads(capsys.readouterr().out)
    assert main(["score", *files[1::-1], *prompt_and_judge]) == 0
    assert json.loads(capsys.readouterr().out)["margin"] == pytest.approx(-forward["margin"], abs=1e-5)
    assert main(["rank", *files, *prompt_and_judge]) == 0
    assert len(json.loads(capsys.readouterr().out)["order"]) == 3
    Media(torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(3))).save(tmp_path / "first.png")
    given = ["--condition", str(tmp_path / "first.png")]
    assert main(["score", *files[:2], *prompt_and_judge, *given]) == 0
    with_first = json.loads(capsys.readouterr().out)["margin"]
    opened, first = [Media.open(f) for f in files], Media.open(tmp_path / "first.png")
    judge = load_judge(tmp_path / "run")
    pairs = ((0, 1), (0, 2), (1, 2))
    comparisons = [Comparison(prompt_and_judge[1], opened[i], opened[j], condition=first) for i, j in pairs]
    margins = dict(zip(pairs, judge.judge(comparisons).margin.tolist(), strict=True))
    assert with_first == pytest.approx(margins[0, 1], abs=2e-6)
    assert abs(with_first - forward["margin"]) > 1e-5
    assert main(["rank", *files, *prompt_and_judge, *given]) == 0
    wins = json.loads(capsys.readouterr().out)["wins"]
    rates = torch.tensor([*margins.values()]).sigmoid().tolist()
    assert [wins[i][j] for i, j in pairs] == pytest.approx(rates, abs=1e-4)
    for wrong, message in (
        ([files[0], str(tmp_path / "no.mp4"), *prompt_and_judge], "no.mp4: no such file"),
        ([*files, *prompt_and_judge], "3 files; give a candidate and a reference"),
        ([*files[:2], *prompt_and_judge, "--condition", files[0]], "a.mp4: a clip, not a picture"),
        ([data, "--condition", files[0]], "--condition cannot be used with a data folder"),
        ([*files[:2], *prompt_and_judge[:2]], "a clip of 9 frames; this judge was trained on pictures"),
    ):
        assert main(["score", *wrong]) != 0
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
