"""How pictures come onto the page."""

import base64
import io
import json

from PIL import Image

from rewarddance.apps.report import LARGE, _image, write_report
from rewarddance.core.runs import RunFolder
from rewarddance.reward.train_config import RewardConfig


def test_a_judges_page_says_by_which_set_its_weights_were_chosen(tmp_path):
    RunFolder(tmp_path).start("judge", RewardConfig(data="data/mine"))
    figures = {"num_pairs": 9, "accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "spearman": None}
    (tmp_path / "evaluation.json").write_text(json.dumps({"held out": figures, "chose_by": "held out"}))
    page = write_report(tmp_path).read_text()
    assert "0.800" in page
    assert "[0.700, 0.900]" in page
    assert "flatters a little" in page


def test_small_pictures_are_embedded_as_they_are_and_large_ones_made_smaller(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "small.png")
    Image.new("RGB", (1024, 768), "red").save(tmp_path / "large.png")
    small, large = (_image(tmp_path / f"{n}.png") for n in ("small", "large"))
    assert base64.b64decode(small.split(",")[1]) == (tmp_path / "small.png").read_bytes()
    assert large.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))) as found:
        assert found.size == (LARGE, LARGE * 3 // 4)
