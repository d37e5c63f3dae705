"""How pictures come onto the page."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from rewarddance.align.config import AlignConfig
from rewarddance.align.grids import save_grid
from rewarddance.apps.report import LARGE, _image, write_report
from rewarddance.core.clips import animation
from rewarddance.core.media import Media, StoredMedia
from rewarddance.core.runs import RunFolder
from rewarddance.evaluate.generator import Samples
from rewarddance.jobs.sample_files import save_pairs
from rewarddance.reward.train_config import RewardConfig


def test_a_judges_page_says_by_which_set_its_weights_were_chosen(tmp_path):
    RunFolder(tmp_path).start("judge", RewardConfig(data="data/mine"))
    figures = {"num_pairs": 9, "accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "spearman": None}
    content = {"held out": figures, "chose_by": "held out", "computes_in": {"judge": "bf16"}}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    page = write_report(tmp_path).read_text()
    assert "0.800" in page
    assert "[0.700, 0.900]" in page
    assert "slightly too good" in page
    assert "Models computed in: judge in bf16." in page
    assert "<td>computes_in</td>" not in page


@pytest.mark.parametrize(
    ("config", "gold_name"),
    [
        ({}, "oracle fidelity"),
        ({"prompts": "p.txt", "gold_judge": "runs/other"}, "second judge's P(better than the start)"),
        ({"prompts": "p.txt"}, None),
    ],
)
def test_an_alignments_page_names_the_gold_standard_and_the_precisions(config, gold_name, tmp_path):
    run = RunFolder(tmp_path)
    run.start("align", AlignConfig(**config), facts={"computes_in": {"generator": "fp32", "judge": "bf16"}})
    run.log(0, {"probe/proxy": 0.5, "probe/gold": 0.6 if gold_name else None})
    page = write_report(tmp_path).read_text().replace("&#39;", "'")
    assert "Models computed in, during training: generator in fp32, judge in bf16." in page
    assert ("Gold standard of the alignment" in page) == (gold_name is not None)
    assert gold_name is None or f"which training does not see: {gold_name}." in page
    assert ("The judge on the probe" in page) == (gold_name is None)


def test_an_alignments_page_shows_its_alarms(tmp_path):
    run, text = RunFolder(tmp_path), "hacking: the gold standard fell by 0.031 & the judge's reward rose"
    run.start("align", AlignConfig())
    run.log(0, {"seconds": 1.0})
    assert run.alarms() is None  # nothing was probed yet
    assert "during training" not in write_report(tmp_path).read_text().split("</script>", 1)[1]
    run.log(20, {"probe/proxy": 0.5, "probe/gold": 0.6})
    assert run.alarms() == []
    assert "The probes raised no alarm during training." in write_report(tmp_path).read_text()
    run.log(40, {"probe/proxy": 0.6, "probe/gold": 0.57, "alarm": text})
    run.log(60, {"probe/proxy": 0.7, "probe/gold": 0.5, "alarm": "collapse"})
    assert run.alarms() == [{"step": 40, "text": text}, {"step": 60, "text": "collapse"}]
    page = html.unescape(write_report(tmp_path).read_text())
    assert f">Step 40: {text}<" in page
    assert ">Step 60: collapse<" in page
    assert "raised no alarm" not in page


def test_small_pictures_are_embedded_as_they_are_and_large_ones_made_smaller(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "small.png")
    Image.new("RGB", (1024, 768), "red").save(tmp_path / "large.png")
    small, large = (_image(tmp_path / f"{n}.png") for n in ("small", "large"))
    assert base64.b64decode(small.split(",")[1]) == (tmp_path / "small.png").read_bytes()
    assert large.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))) as found:
        assert found.size == (LARGE, LARGE * 3 // 4)


def test_large_clips_are_embedded_small():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (2, 3, 1, 1, 3), dtype=np.uint8)
    clips = [np.broadcast_to(c, (3, 360, 640, 3)) for c in colours]
    with Image.open(io.BytesIO(animation(clips, 8.0))) as image:
        assert (image.n_frames, image.size) == (3, (2 * 320 + 2, 180))
        for k in range(3):
            image.seek(k)
            shown = np.asarray(image.convert("RGB")).astype(int)
            assert abs(shown[90, 160] - colours[0, k, 0, 0]).max() <= 4
            assert abs(shown[90, 482] - colours[1, k, 0, 0]).max() <= 4


def test_sample_grids_show_five_frames_of_every_clip(tmp_path):
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (4, 9, 8, 10, 3), dtype=np.uint8)
    media = [Media.from_numpy(c, fps=8.0) for c in clips]
    shown = np.asarray(Image.open(save_grid(tmp_path, 50, ["p", "q"], media, 2)))
    assert shown.shape == (2 * 8 + 4, 2 * 50 + 4, 3)
    for i, clip in enumerate(clips):
        cell = shown[i // 2 * 12 :, i % 2 * 54 :][:8, :50]
        for k, frame in enumerate((0, 2, 4, 6, 8)):
            assert np.array_equal(cell[:, 10 * k : 10 * k + 10], clip[frame])
    assert json.loads((tmp_path / "grids.json").read_text()) == {"prompts": ["p", "q"], "noises": 2, "frames": 5}
    pictures = [Media.from_numpy(c[0]) for c in clips]
    assert np.array_equal(
        np.asarray(Image.open(save_grid(tmp_path, 51, ["p", "q"], pictures, 2))),
        np.concatenate([np.concatenate(clips[i : i + 2, 0], 1) for i in (0, 2)]),
    )


def run_of_clips(folder):
    """A run with an evaluation of one pair of clips, which are returned, uint8 (9, 12, 12, 3)."""
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8) for _ in range(2))
    samples = [
        Samples(("p",), (StoredMedia(torch.from_numpy(x).permute(0, 3, 1, 2)[None], 8.0),)) for x in (before, after)
    ]
    values = np.array([[0.4]])
    save_pairs(folder / "samples", *samples, values, values + 0.2)
    interval = {"mean": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n": 1}
    part = {"before": interval, "after": interval, "gain": interval}
    shares = {"good": 0.5, "same": 0.25, "bad": 0.25, "gsb": interval, "width": 0.01}
    clips = {"criteria": {"motion": part}, "moving": part, "dynamic_degree": part, "good_same_bad": shares}
    evaluation = {
        "prompts": 1, "noises": 1, "num_steps": 2, "before": 0.4, "after": 0.6, "categories": {},
        "gain": {**interval, "verdict": "better"}, "proxy": {"mean": 0.5}, "diversity": {"feature_ratio": 1.0},
        "clips": clips,
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    RunFolder(folder).start("align", AlignConfig(task="embedded-video"))
    return before, after


def test_clips_before_and_after_are_one_animation_in_the_page(tmp_path):
    before, after = run_of_clips(tmp_path)
    animated = (tmp_path / "samples" / "000.webp").read_bytes()
    with Image.open(io.BytesIO(animated)) as image:
        assert (image.n_frames, image.size) == (9, (26, 12))
        for k in range(9):
            image.seek(k)
            shown = np.asarray(image.convert("RGB"))
            assert np.array_equal(shown[:, :12], before[k])
            assert np.array_equal(shown[:, 14:], after[k])
            image.load()
            assert image.info["duration"] == 125
    page = write_report(tmp_path).read_text()
    assert base64.b64encode(animated).decode() in page
    (sheet,) = re.findall(r'<img class="sheet" src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as image:  # nine frames in rows of three
        shown = np.asarray(image.convert("RGB"))
    assert shown.shape == (3 * 14 - 2, 3 * 28 - 2, 3)
    for k in range(9):
        cell = shown[k // 3 * 14 :, k % 3 * 28 :][:12, :26]
        assert np.array_equal(cell[:, :12], before[k])
        assert np.array_equal(cell[:, 14:], after[k])
    assert "oracle motion" in page
    assert "+0.250</b> [+0.125, +0.500]" in page


@pytest.mark.browser
def test_a_contact_sheet_stands_for_a_clip_that_does_not_play(browser, tmp_path):
    """On paper, with reduced motion, and where the browser cannot read the animation."""
    run_of_clips(tmp_path)
    page = browser.new_page()
    page.set_default_timeout(120_000)  # milliseconds
    page.goto(write_report(tmp_path).as_uri())

    def shown():
        return page.locator("img.clips").is_visible(), page.locator("img.sheet").is_visible()

    assert shown() == (True, False)
    for how in ({"media": "print"}, {"reduced_motion": "reduce"}):
        page.emulate_media(**how)
        assert shown() == (False, True)
        page.emulate_media(media="screen", reduced_motion="no-preference")
        assert shown() == (True, False)
    page.evaluate("document.querySelector('img.clips').src = 'data:image/webp;base64,AAAA'")
    page.locator("img.sheet").wait_for(state="visible")
    assert shown() == (False, True)
    page.close()
