"""Sampling and evaluating an aligned Wan folder: clips, one sheet of all, and figures of clips before and after."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from clip_assets import count_verdicts
from PIL import Image
from tiny_wan import RedClips, tiny_wan

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.task import Prompt
from rewarddance.generator.wan import CLIP_FILE
from rewarddance.jobs import evaluate, sample_files
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.sample import Sampling, Searching, sample_to_folder
from rewarddance.search.config import BestOfNConfig, VerifierConfig
from rewarddance.world.build.video_sampling import SHAPE

PROMPTS = [
    Prompt("a red circle moving left, flat style, white background", condition=Media(torch.full((1, 3, 60, 90), 0.25))),
    Prompt("a blue square growing, flat style, black background", condition=Media(torch.rand(1, 3, 48, 48))),
]


class Asked(RedClips):
    precision, criterion = "fp32", "overall"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image-to-video pipeline on disk."""
    folder = tmp_path_factory.mktemp("wan")
    tiny_wan(True).pipeline.save_pretrained(folder)
    (folder / CLIP_FILE).write_text(json.dumps(asdict(SHAPE)))
    return folder


def test_clips_are_written_with_one_sheet_of_all(folder, tmp_path):
    sampling = Sampling(str(folder), num_steps=2)
    out = sample_to_folder(PROMPTS, tmp_path, sampling, num=1)["samples"]
    assert [x["file"] for x in out] == ["000.mp4", "001.mp4"]
    assert [x["prompt"] for x in out] == [p.text for p in PROMPTS]
    clip = Media.open(tmp_path / "001.mp4")
    assert (clip.num_frames, clip.size, clip.fps) == (9, (48, 48), 8.0)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 50 - 2, 9 * 50 - 2, 3)
    shown = sheet[50:98, :48].mean(2).ravel()  # grey, because the file holds colours at half the resolution
    assert np.corrcoef(shown, clip.frames[0].mean(0).numpy().ravel())[0, 1] > 0.9
    out = sample_to_folder(PROMPTS[:1], tmp_path / "vbench", sampling, num=2, layout="vbench")["samples"]
    assert [x["file"] for x in out] == [f"{PROMPTS[0].text}-{i}.mp4" for i in range(2)]
    assert Media.open(tmp_path / "vbench" / out[1]["file"]).num_frames == 9
    with pytest.raises(ConfigError, match="is for pictures"):
        sample_to_folder(PROMPTS, tmp_path, sampling, num=1, layout="geneval")


def test_a_search_for_image_to_video_keeps_the_judges_best_clip(folder, tmp_path, monkeypatch):
    judge = Asked()
    # a judge of one line, so that the test is fast
    monkeypatch.setattr("rewarddance.jobs.sample.load_judge", lambda *args, **kwargs: judge)
    searching = Searching(BestOfNConfig(), 6, VerifierConfig(ask="pointwise"))
    out = sample_to_folder(PROMPTS, tmp_path, Sampling(str(folder), num_steps=2), num=1, searching=searching)["samples"]
    assert [(x["prompt"], x["nfe"], x["judge_calls"]) for x in out] == [(p.text, 6, 3) for p in PROMPTS]
    assert [c.condition.size for c in judge.asked] == [(48, 48)] * 6  # each picture in the generator's size
    scores = judge.judge(judge.asked[:6]).margin.view(2, 3).max(1).values
    assert [x["score"] for x in out] == pytest.approx(scores.tolist(), abs=1e-4)


def test_without_pyav_every_clip_is_a_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_files, "find_spec", lambda name: None)
    files = sample_files.SampleFiles(tmp_path)
    assert files.write(Media(torch.rand(9, 3, 20, 20), 8.0), "a boat") == "000.png"
    with Image.open(tmp_path / "000.png") as sheet:
        assert sheet.size == (3 * 22 - 2, 3 * 22 - 2)


def test_a_picture_is_cut_to_its_middle_square():
    wide = torch.zeros(1, 3, 10, 30)
    wide[..., 10:20] = 1.0
    assert torch.equal(sample_files.square_of(Media(wide), 10).frames, torch.ones(1, 3, 10, 10))
    assert sample_files.square_of(Media(wide), 48).size == (48, 48)


def test_an_aligned_video_generator_is_evaluated_with_the_figures_of_clips(folder, tmp_path, monkeypatch):
    config = AlignConfig(
        generator=str(folder), task="embedded-image-to-video", precision="fp32", num_prompts=2, batch_size=2,
        lora_rank=2, probe_prompts=2, refl={"num_steps": 2, "window": (0.5, 1.0)}, sample_guidance=3.0,
        optim=OptimConfig(lr=1e-2), loop=LoopConfig(num_steps=1),
    )  # fmt: skip
    run = tmp_path / "run"
    align_generator(config, tiny_wan(True), RedClips(), run)
    judge = Asked()
    monkeypatch.setattr(evaluate, "load_judge", lambda *args, **kwargs: judge)  # the same judge
    verdicts = count_verdicts(monkeypatch)
    figures = evaluate.evaluate_alignment(run, num_noises=2, every=24, diversity_prompts=1, diversity_noises=2)
    assert sorted(verdicts.values()) == [1] * 12  # two prompts and two noises: before, after and development
    assert figures["guidance"] == Sampling.of_run(run).guidance == 3.0  # training has 1.0
    assert set(figures["clips"]["criteria"]) == {"fidelity", "motion", "consistency", "first_frame", "overall"}
    gold = figures["clips"]["criteria"]["overall"]
    assert gold["before"]["mean"] == pytest.approx(figures["before"])
    assert gold["gain"]["mean"] == pytest.approx(figures["gain"]["mean"])
    parts = figures["clips"]["good_same_bad"]
    assert parts["good"] + parts["same"] + parts["bad"] == pytest.approx(1)
    assert 0 <= figures["clips"]["alignment"]["before"]["mean"] <= 2
    assert figures["diversity"]["before"]["feature"] > 0
    assert all(c.condition is not None for c in judge.asked)
    assert not list((run / "clips").glob("evaluation-*"))
    assert len([f for f in (run / "samples").glob("*.png") if not f.name.startswith("step-")]) == 4
    assert json.loads((run / "evaluation.json").read_text())["clips"].keys() == figures["clips"].keys()
    few = {"num_noises": 2, "every": 24, "diversity_prompts": 1, "diversity_noises": 2}
    other = evaluate.evaluate_alignment(run, split="development", **few)
    assert set(other["per_prompt"]["prompts"]).isdisjoint(figures["per_prompt"]["prompts"])
    assert json.loads((run / "evaluation_development.json").read_text())["split"] == "development"
    assert json.loads((run / "evaluation.json").read_text())["split"] == "benchmark"
    with pytest.raises(ConfigError, match="has no second benchmark"):
        evaluate.evaluate_alignment(run, split="second")
    start = evaluate.evaluate_generator(str(folder), task=config.task, split="development", num_noises=2, every=24)
    assert start["split"] == "development"
    assert 0 <= start["gold"]["all"]["mean"] <= 1
    assert start["gold_name"] == "oracle value (fidelity, motion, consistency, first frame)"
