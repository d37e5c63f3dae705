"""How pictures come onto the page."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from rewarddance.align.config import AlignConfig
from rewarddance.apps.report import LARGE, _image, write_report
from rewarddance.core.media import StoredMedia
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


def test_small_pictures_are_embedded_as_they_are_and_large_ones_made_smaller(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "small.png")
    Image.new("RGB", (1024, 768), "red").save(tmp_path / "large.png")
    small, large = (_image(tmp_path / f"{n}.png") for n in ("small", "large"))
    assert base64.b64decode(small.split(",")[1]) == (tmp_path / "small.png").read_bytes()
    assert large.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))) as found:
        assert found.size == (LARGE, LARGE * 3 // 4)


def test_clips_before_and_after_are_one_animation_in_the_page(tmp_path):
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8) for _ in range(2))
    samples = [
        Samples(("p",), (StoredMedia(torch.from_numpy(x).permute(0, 3, 1, 2)[None], 8.0),)) for x in (before, after)
    ]
    values = np.array([[0.4]])
    save_pairs(tmp_path / "samples", *samples, values, values + 0.2)
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
    interval = {"mean": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n": 1}
    part = {"before": interval, "after": interval, "gain": interval}
    shares = {"good": 0.5, "same": 0.25, "bad": 0.25, "gsb": interval, "width": 0.01}
    clips = {"criteria": {"motion": part}, "moving": part, "dynamic_degree": part, "good_same_bad": shares}
    evaluation = {
        "prompts": 1, "noises": 1, "num_steps": 2, "before": 0.4, "after": 0.6, "categories": {},
        "gain": {**interval, "verdict": "better"}, "proxy": {"mean": 0.5}, "diversity": {"feature_ratio": 1.0},
        "clips": clips,
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    RunFolder(tmp_path).start("align", AlignConfig(task="embedded-video"))
    page = write_report(tmp_path).read_text()
    assert base64.b64encode(animated).decode() in page
    assert "oracle motion" in page
    assert "+0.250</b> [+0.125, +0.500]" in page
