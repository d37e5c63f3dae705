"""Every picture format that is read, and one clear line for each kind of file that is no picture."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.pictures import FORMATS

EXTENSIONS = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "AVIF": "avif",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
}
LOSSY = {"JPEG": 6, "WEBP": 6, "AVIF": 6}
"""Largest difference in levels of 0..255 for a flat picture."""
ANIMATIONS = ("webp", "png", "avif")  # an animated GIF is a clip


def flat(level=60):
    """Four flat quarters, which also GIF's palette and lossy formats keep."""
    pixels = np.full((32, 48, 3), level, np.uint8)
    pixels[:16, :24], pixels[16:, 24:], pixels[:16, 24:, 0] = 200, 120, 180
    return pixels


def noise(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def refusal(path):
    """The message of the error, which is one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        Media.open(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_large_colour_profile_is_no_obstacle(tmp_path):
    """Pillow's own limit for a profile in a PNG is 1 MiB."""
    pixels, profile = noise(), np.random.default_rng(1).bytes(2 << 20)
    Image.fromarray(pixels).save(tmp_path / "photo.png", icc_profile=profile)
    assert (tmp_path / "photo.png").stat().st_size > 2 << 20
    assert np.array_equal(Media.open(tmp_path / "photo.png").to_numpy(), pixels)


READERS = {
    "the desk": "from rewarddance.apps.annotate.media import size_of\nassert size_of(content) == (48, 32)",
    "the desk's pixels": (
        "from rewarddance.apps.annotate.media import equal_pictures\nassert equal_pictures([content], [(48, 32)])"
    ),
    "ab": (
        "from rewarddance.data.votes import MediaRef\nfrom rewarddance.jobs.ab import _size\n"
        "assert _size(MediaRef(data=content)) == (48, 32)"
    ),
    "data select": (
        "from rewarddance.data.votes import MediaRef\nfrom rewarddance.jobs.data.select import PIXELS, _small\n"
        "assert _small(MediaRef(sha256='a', data=content), {}).shape == (3 * PIXELS**2,)"
    ),
    "a report": "from rewarddance.apps.report import _image\nassert _image(Path(path))",
}
"""Code that opens a picture, by who uses it; it has `path` and `content`."""


@pytest.mark.parametrize("reader", READERS)
def test_each_reader_opens_a_large_colour_profile_in_a_fresh_process(reader, tmp_path):
    """`Media.open` must not have raised Pillow's limits before."""
    path = tmp_path / "photo.png"
    Image.fromarray(noise()).save(path, icc_profile=bytes(2 << 20))
    start = "import sys\nfrom pathlib import Path\npath = sys.argv[1]\ncontent = Path(path).read_bytes()\n"
    command = [sys.executable, "-c", start + READERS[reader], str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_formats_are_those_that_are_tested():
    assert set(FORMATS) == set(EXTENSIONS)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_pixels_that_were_saved(name, tmp_path):
    path = tmp_path / f"a.{EXTENSIONS[name]}"
    Image.fromarray(flat()).save(path, **({"quality": 95} if name in LOSSY else {}))
    opened = Media.open(path).to_numpy().astype(int)
    gaps = np.abs(opened - flat())
    inner = np.r_[2:14, 18:30], np.r_[2:22, 26:46]  # lossy formats blur edges
    assert gaps[np.ix_(*inner)].max() <= LOSSY.get(name, 0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("extension", EXTENSIONS.values())
def test_a_file_that_was_cut_off_is_one_clear_line(extension, share, tmp_path):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(noise()).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = refusal(path)
    assert "truncated picture" in message or message.startswith("not a picture")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "avif", "gif", "tiff"])
def test_a_cut_file_whose_first_bytes_name_its_format_is_a_truncated_picture(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(noise()).save(path)
    path.write_bytes(path.read_bytes()[:40])
    assert "truncated picture" in refusal(path)


def test_damaged_avif_is_one_clear_line(tmp_path):
    """Pillow's decoder raises a RuntimeError where the coded pixels are wrong."""
    path = tmp_path / "a.avif"
    Image.fromarray(noise()).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = bytes(255 - b for b in content[start:])
    path.write_bytes(bytes(content))
    assert "unreadable or truncated picture" in refusal(path)


@pytest.mark.parametrize("extension", ANIMATIONS)
def test_an_animation_is_one_clear_line(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    frames = [Image.fromarray(noise(i)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert refusal(path) == "an animation of 3 frames, not a picture"


def test_the_first_page_of_a_tiff_is_the_picture(tmp_path):
    pages = [Image.fromarray(noise(i)) for i in range(2)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert np.array_equal(Media.open(tmp_path / "a.tiff").to_numpy(), noise(0))


def test_a_folder_and_an_empty_file_are_no_pictures(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    assert refusal(tmp_path) == "a folder, not a picture"
    assert refusal(tmp_path / "empty.png") == f"not a picture ({', '.join(FORMATS)})"
