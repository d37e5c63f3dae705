"""What an import says of files with another separator or encoding, of equal pictures, and of rows that come again."""

import json

import numpy as np
import pytest
from PIL import Image

from rewarddance.core.errors import InputError
from rewarddance.data.importers import import_preferences
from rewarddance.data.parquet import RecordTable

HEADER, ROW = "prompt,image_a,image_b,label\n", "a café,a.png,b.png,a\n"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "copy of a.png").write_bytes((folder / "a.png").read_bytes())
    return folder


def of_csv(content, root, tmp_path, on_error="stop"):
    (tmp_path / "votes.csv").write_bytes(content)
    return import_preferences(tmp_path / "votes.csv", "csv", root, tmp_path / "out", on_error)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_named_with_the_column_that_came_of_it(separator, root, tmp_path):
    content = (HEADER + ROW).replace(",", separator)
    with pytest.raises(InputError) as caught:
        of_csv(content.encode(), root, tmp_path)
    column = HEADER.strip().replace(",", separator)
    assert str(caught.value) == (
        f"{tmp_path / 'votes.csv'}: one column, {column!r}; its separator is probably {separator!r}. "
        "Save the file with commas"
    )


def test_other_columns_are_listed(root, tmp_path):
    with pytest.raises(InputError, match=r"first: row 1: .*; the columns are 'caption', 'left', 'right'$"):
        of_csv(b"caption,left,right\na dog,a.png,b.png\n", root, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_file_in_another_encoding_is_one_clear_line(encoding, root, tmp_path):
    with pytest.raises(InputError, match="the header is not UTF-8; save the file as UTF-8 with commas"):
        of_csv((HEADER + ROW).encode(encoding), root, tmp_path)


def test_a_byte_order_mark_is_not_part_of_the_first_column(root, tmp_path):
    assert of_csv((HEADER + ROW).encode("utf-8-sig"), root, tmp_path).accepted == 1
    assert RecordTable.open(tmp_path / "out" / "train.parquet").prompts == ["a café"]


def test_one_file_under_two_names_is_no_pair(root, tmp_path):
    rows = HEADER + ROW + ROW.replace("b.png", "copy of a.png")
    report = of_csv(rows.encode(), root, tmp_path, "skip")
    assert (report.accepted, report.rejected) == (1, [(2, "a.png and copy of a.png: the same picture twice")])


def test_rows_that_repeat_or_contradict_earlier_ones_are_counted(root, tmp_path):
    rows = [
        "p,a.png,b.png,a",
        "p,a.png,b.png,a",  # repeats the first
        "p,b.png,a.png,b",  # repeats it from the other side
        "p,copy of a.png,b.png,a",  # repeats it under another name
        "p,a.png,b.png,b",  # contradicts it
        "p,a.png,b.png,tie",  # does neither
        "p,a.png,b.png,tie",  # repeats the tie
        "q,a.png,b.png,b",  # is about another prompt
        "p,a.png,c.png,b",  # is about another picture
    ]
    report = of_csv((HEADER + "\n".join(rows) + "\n").encode(), root, tmp_path)
    assert (report.accepted, report.repeated, report.contradicting) == (9, 4, 1)
    counts = json.loads((tmp_path / "out" / "import.json").read_text())
    assert (counts["rows"], counts["num_repeated"], counts["num_contradicting"]) == (9, 4, 1)
    assert report.messages() == [
        "4 choices repeat an earlier row exactly (kept; each counts once more)",
        "1 choices prefer the other picture than an earlier row (both are kept)",
    ]
    assert len(RecordTable.open(tmp_path / "out" / "train.parquet")) == 9


def test_rows_of_another_criterion_are_no_repetition(root, tmp_path):
    rows = "prompt,image_a,image_b,label,criterion\np,a.png,b.png,a,style\np,a.png,b.png,a,overall\n"
    (tmp_path / "v.csv").write_text(rows)
    report = import_preferences(tmp_path / "v.csv", "csv", root, tmp_path / "out", criteria=("overall", "style"))
    assert (report.accepted, report.repeated, report.contradicting, report.messages()) == (2, 0, 0, [])
