"""Public sets of pictures in their own layouts: their captions are prompts, their pictures and styles a reference."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rewarddance.core.errors import InputError
from rewarddance.data.prompts import read_prompts
from rewarddance.data.sources import pictures_of, title_of


def picture(level, side=8):
    return Image.new("RGB", (side, side), (level, level, level))


def png(level):
    out = io.BytesIO()
    picture(level).save(out, "PNG")
    return out.getvalue()


def levels(source, style=None):
    """Caption, style and grey level of every picture."""
    return [(p.caption, p.style, round(float(p.media().frames.mean()) * 255)) for p in pictures_of(source, style)]


def prompts(source):
    return [(p.text, p.category) for p in read_prompts(source)[0]]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_coco_has_one_picture_for_several_captions(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for i in (1, 2):
        picture(i).save(tmp_path / "val2017" / f"{i:012d}.png")
    captions = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i:012d}.png", "coco_url": "http://x"} for i in (1, 2)],
        "annotations": [
            {"id": 10, "image_id": 2, "caption": "A dog. "},
            {"id": 11, "image_id": 1, "caption": "A cat."},
            {"id": 12, "image_id": 1, "caption": "One cat."},
        ],
    }
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(json.dumps(captions))
    assert levels(file) == [("A cat.", "", 1), ("A dog.", "", 2)]
    assert prompts(file) == [("A dog.", ""), ("A cat.", ""), ("One cat.", "")]
    captions["images"][0]["file_name"] = "../../secret.png"
    file.write_text(json.dumps(captions))
    with pytest.raises(InputError, match="outside the media root"):
        list(pictures_of(file))
    file.write_text("{}")
    with pytest.raises(InputError, match="not COCO's captions"):
        list(pictures_of(file))


def test_laion_metadata_has_links_and_img2dataset_has_bytes(tmp_path):
    columns = {"URL": ["http://a", "http://b", "http://c"], "TEXT": ["a tree", "a tree", None], "WIDTH": [1, 2, 3]}
    pq.write_table(pa.table({**columns, "similarity": [0.3, 0.4, 0.5]}), tmp_path / "part-00000.parquet")
    assert prompts(tmp_path / "part-00000.parquet") == [("a tree", "")]
    with pytest.raises(InputError, match="row 1: the set links to its pictures"):
        next(pictures_of(tmp_path / "part-00000.parquet")).media()
    pq.write_table(pa.table({"caption": ["a tree"], "jpg": [png(7)], "key": ["0"]}), tmp_path / "00000.parquet")
    assert levels(tmp_path / "00000.parquet") == [("a tree", "", 7)]
    pq.write_table(pa.table({"url": ["http://a"]}), tmp_path / "bare.parquet")
    with pytest.raises(InputError, match="a set of pictures without captions"):
        read_prompts(tmp_path / "bare.parquet")


def test_webdataset_tars_alone_and_in_a_folder(tmp_path):
    write_tar(
        tmp_path / "00000.tar",
        [
            ("000.png", png(1)),
            ("000.txt", b"a red door\n"),
            ("000.json", json.dumps({"caption": "other words", "style": "photo"}).encode()),
            ("001.png", png(2)),
            ("001.json", json.dumps({"caption": "a blue door"}).encode()),
            ("002.txt", b"no picture"),
        ],
    )
    write_tar(tmp_path / "00001.tar", [("003.png", png(3))])
    assert levels(tmp_path / "00000.tar") == [("a red door", "photo", 1), ("a blue door", "", 2)]
    assert levels(tmp_path) == [("a red door", "photo", 1), ("a blue door", "", 2), ("", "", 3)]
    assert prompts(tmp_path) == [("a red door", "photo"), ("a blue door", "")]
    # `tar -C folder -cf x .` writes names like these; only the first dot after the last slash ends a key
    write_tar(tmp_path / "dots.tar", [("./v1.2/0.png", png(4)), ("./v1.2/0.txt", b"one"), ("./v1.2/1.png", png(5))])
    assert levels(tmp_path / "dots.tar") == [("one", "", 4), ("", "", 5)]
    (tmp_path / "dots.tar").unlink()
    (tmp_path / "00001.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"00001\.tar: not a readable tar"):
        list(pictures_of(tmp_path))


def test_wikiart_gives_titles_and_styles_as_a_folder_and_as_a_list(tmp_path):
    for place, level in (("Art_Nouveau/alphonse-mucha_spring-1896", 1), ("Realism/ivan-shishkin_oaks-1887-2", 2)):
        file = tmp_path / f"{place}.png"
        file.parent.mkdir()
        picture(level).save(file)
    own = [("spring, by alphonse mucha", "Art Nouveau", 1), ("oaks, by ivan shishkin", "Realism", 2)]
    assert levels(tmp_path) == own
    assert levels(tmp_path, "Realism") == own[1:]
    assert prompts(tmp_path) == [(caption, style) for caption, style, _ in own]
    list_of_files = tmp_path / "classes.csv"
    list_of_files.write_text(
        "filename,artist,genre\nArt_Nouveau/alphonse-mucha_spring-1896.png,mucha,\"['Art Nouveau (Modern)', 'x']\"\n"
        "Realism/ivan-shishkin_oaks-1887-2.png,shishkin,\n"
    )
    assert levels(list_of_files) == [(own[0][0], "Art Nouveau (Modern)", 1), own[1]]
    list_of_files.write_text("prompt,style\na boat,Realism\n")
    assert prompts(list_of_files) == [("a boat", "Realism")]
    list_of_files.write_text("filename\n../out.png\n")
    with pytest.raises(InputError, match="outside the media root"):
        list(pictures_of(list_of_files))
    assert title_of("IMG_") == title_of("plain") == ""


def test_pictures_without_captions_are_a_reference_and_give_no_prompts(tmp_path):
    """Some Parquet files of WikiArt have `image` and `style` alone."""
    image = pa.array([{"bytes": b"x", "path": "a.jpg"}] * 2)
    pq.write_table(pa.table({"image": image, "style": ["cubism", "realism"]}), tmp_path / "art.parquet")
    (picture,) = pictures_of(tmp_path / "art.parquet", style="realism")
    assert (picture.caption, picture.content) == ("", b"x")
    with pytest.raises(InputError, match="a set of pictures without captions"):
        read_prompts(tmp_path / "art.parquet")


def test_other_files_of_a_folder_are_no_pictures(tmp_path):
    for name in ("a.png", "b.TIFF", ".DS_Store", "c.parquet", "d.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [Path(p.name).name for p in pictures_of(tmp_path)] == ["a.png", "b.TIFF"]


def test_what_is_no_set_is_named(tmp_path):
    for name in ("absent", "absent.tar"):
        with pytest.raises(InputError, match=f"{name}: no set of pictures"):
            pictures_of(tmp_path / name)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InputError, match="no set of pictures"):
        pictures_of(tmp_path / "a.zip")
