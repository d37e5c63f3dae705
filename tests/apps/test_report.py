"""How pictures come onto the page."""

import base64
import io

from PIL import Image

from rewarddance.apps.report import LARGE, _image


def test_small_pictures_are_embedded_as_they_are_and_large_ones_made_smaller(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "small.png")
    Image.new("RGB", (1024, 768), "red").save(tmp_path / "large.png")
    small, large = (_image(tmp_path / f"{n}.png") for n in ("small", "large"))
    assert base64.b64decode(small.split(",")[1]) == (tmp_path / "small.png").read_bytes()
    assert large.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))) as found:
        assert found.size == (LARGE, LARGE * 3 // 4)
