"""How pictures come onto the page."""

import base64
import io
import json

import pytest
from PIL import Image

from rewarddance.align.config import AlignConfig
from rewarddance.apps.report import LARGE, _image, write_report
from rewarddance.core.runs import RunFolder
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
