"""Pictures at the desk: only their pixels can show which system made them."""

import io

import numpy as np
import pytest
from desks import DeskServer, picture
from PIL import Image

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.media import LARGEST, Remembered, equal_pictures, size_of
from rewarddance.core.errors import InputError
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.votes import MediaRef, VotedRecord


def opened(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def encoded(pixels, format="PNG", **how):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **how)
    return buffer.getvalue()


def test_pictures_of_an_item_are_equal_in_all_but_their_pixels():
    files = [picture(0.3, side=16), picture(0.6, side=32), encoded(np.full((16, 32, 3), 90, np.uint8), "JPEG")]
    made = equal_pictures(files, [size_of(f) for f in files])
    assert len(set(map(len, made))) == 1
    assert {(opened(m).size, opened(m).format, tuple(opened(m).info)) for m in made} == {((32, 32), "PNG", ())}
    assert not any(b"secret" in m for m in made)
    small, large, flat = (np.asarray(opened(m)) for m in made)
    assert (small == np.asarray(opened(files[0])).repeat(2, 0).repeat(2, 1)).all()  # a whole factor keeps the pixels
    assert (large == np.asarray(opened(files[1]))).all()
    assert (flat[:8] == 0).all()
    assert (flat[24:] == 0).all()
    assert abs(flat[8:24].astype(int) - 90).max() <= 1


def test_pictures_of_one_size_keep_their_pixels():
    files = [encoded(np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)) for i in range(2)]
    for content, source in zip(equal_pictures(files, [(30, 20)] * 2), files, strict=True):
        assert (np.asarray(opened(content)) == np.asarray(opened(source))).all()


def test_large_pictures_are_made_smaller():
    wide = encoded(np.zeros((10, 2 * LARGEST, 3), np.uint8))
    assert opened(equal_pictures([wide], [size_of(wide)])[0]).size == (LARGEST, 5)


def test_a_turned_picture_has_the_size_of_its_upright_copy():
    exif = Image.Exif()
    exif[274] = 6
    assert size_of(encoded(np.zeros((4, 7, 3), np.uint8), "JPEG", exif=exif)) == (4, 7)
    assert size_of(encoded(np.zeros((4, 7, 3), np.uint8), "JPEG")) == (7, 4)


def served(tmp_path, files, **settings):
    media = tuple(MediaRef(path=f"{k}.png", sha256=hash_of(f), data=f) for k, f in enumerate(files))
    write_rows([row_of_votes(VotedRecord("r0", "a picture", media))], tmp_path / "data" / "train.parquet")
    return DeskServer(tmp_path / "data", f"sqlite:///{tmp_path}/desk.db", DeskConfig(checks=0, repeats=0, **settings))


@pytest.mark.parametrize("task", ["pairwise", "rating"])
def test_also_a_single_picture_has_the_common_size_of_its_prompt(tmp_path, task):
    """Otherwise a rating page would show which system draws at a higher resolution."""
    desk = served(tmp_path, [picture(0.2, side=16), picture(0.4, side=16), picture(0.6, side=48)], task=task)
    ada = desk.person()
    seen = []

    def look(pictures):
        seen.extend(pictures)
        return {"rating": 3} if task == "rating" else {"choice": "tie"}

    assert ada.work(look) == 3
    assert {(opened(content).size, len(content)) for content in seen} == {((48, 48), len(seen[0]))}
    desk.database.close()


def test_a_damaged_picture_is_one_clear_line_at_the_start(tmp_path):
    with pytest.raises(InputError, match=r"record r0: 1.png: not a picture, or damaged"):
        served(tmp_path, [picture(0.2), b"no picture"])


def test_a_picture_with_too_many_pixels_is_one_clear_line_at_the_start(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    with pytest.raises(InputError, match=r"record r0: 1.png: not a picture, or damaged .*decompression bomb"):
        served(tmp_path, [picture(0.2), buffer.getvalue()])


def test_the_server_forgets_the_files_that_were_asked_for_longest_ago():
    kept, encoded = Remembered(most=10), []

    def get(key, size):
        return kept.get(key, lambda: encoded.append(key) or [bytes(size)])

    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4)):
        assert get(key, size) == [bytes(size)]
    assert encoded == ["a", "b", "c", "b"]  # "b" was forgotten when "c" came, and "a" was not
    get("large", 20)
    get("large", 20)
    assert encoded == ["a", "b", "c", "b", "large"]  # an item that is larger than the limit is kept alone
    with pytest.raises(OSError):
        kept.get("broken", lambda: (_ for _ in ()).throw(OSError()))
    assert kept.get("broken", lambda: [b"x"]) == [b"x"]
