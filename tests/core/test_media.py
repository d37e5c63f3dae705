"""Picture files as they come: sixteen bits, bombs, lone pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from rewarddance import load_judge
from rewarddance.core.errors import InputError, JudgementError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison


def test_sixteen_bits_of_grey_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    assert Media.open(tmp_path / "grey.png").frames[0, 0].numpy() == pytest.approx(ramp / 65535, abs=1e-6)


def test_a_picture_without_a_range_is_refused():
    with pytest.raises(InputError, match="mode F has no range"):
        Media.from_pil(Image.new("F", (8, 8)))


@pytest.mark.parametrize("side", [9_000, 10_000, 20_000])
def test_real_bombs_are_one_line_and_no_warning(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="over the limit of 64,000,000 pixels"):
        Media.open(tmp_path / "bomb.png")


def test_a_lone_pixel_has_a_key_and_is_too_small_to_judge(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    one = Media.open(tmp_path / "one.png")
    assert one.key == Media.from_tensor(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).key
    with pytest.raises(JudgementError, match="too small"):
        load_judge("tiny").judge([Comparison("a red circle", one, one)], on_refused="raise")
