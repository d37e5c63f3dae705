"""Files of preferences as they come: a bad row is a bad row, never the end of the file nor half of another one."""

import json

import numpy as np
import pytest
from PIL import Image

from rewarddance.core.errors import InputError
from rewarddance.data.importers import import_preferences
from rewarddance.data.parquet import RecordTable

PAIR = '"prompt": "a circle", "image_a": "a.png", "image_b": "b.png"'
GOOD = f'{{{PAIR}, "label": "a"}}'


@pytest.fixture
def pick(tmp_path):
    """What became of rows of text, broken ones left out."""
    root = tmp_path / "images"
    root.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "loop.png").symlink_to(root / "loop.png")

    def run(rows, format="jsonl"):
        source = tmp_path / f"votes.{format}"
        source.write_bytes(rows if isinstance(rows, bytes) else "\n".join(rows).encode())
        return import_preferences(source, format, root, tmp_path / "out", "skip")

    return run


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f'{{{PAIR}, "votes_a": "nan", "votes_b": 1}}', "votes_a 'nan' is not a finite number"),
        (f'{{{PAIR}, "votes_a": Infinity, "votes_b": 1}}', "votes_a inf is not a finite number"),
        (f'{{{PAIR}, "label": "a", "probability": 0.1}}', "probability and label prefer different pictures"),
        (f'{{{PAIR}, "label": "a", "votes_a": 0, "votes_b": 5}}', "votes and label prefer different pictures"),
        (f'{{{PAIR}, "chosen": "a.png", "rejected": "b.png", "label": "a"}}', "both image_a and chosen"),
        ('{"prompt": "a", "image_a": "a.png", "image_b": "./a.png", "label": "a"}', "the same picture twice"),
        (f'{{"prompt": "a", "images": ["a.png", "b.png"], "ranking": [1, {"9" * 400}]}}', "is not a number"),
        ("[" * 100_000, "not JSON"),
        (GOOD.replace("circle", "circle \\ud83d"), "half of a character"),
        (GOOD.replace("b.png", "loop.png"), "loop"),
    ],
)
def test_rows_that_say_two_things_or_nothing_are_broken(pick, row, reason):
    report = pick([GOOD, row, GOOD])
    assert (report.accepted, [n for n, _ in report.rejected]) == (2, [2])
    assert reason in report.rejected[0][1]


def test_a_label_and_finer_words_of_the_same_mind_are_one_row(pick, tmp_path):
    assert pick([f'{{{PAIR}, "label": "a", "votes_a": 3, "votes_b": 1}}']).accepted == 1
    assert RecordTable.open(tmp_path / "out" / "train.parquet")[0].choices[0].label == 0.75


def test_only_line_feeds_end_lines_of_json(pick, tmp_path):
    prompts = ["a\u2028circle", "a\u0085circle", "a circle"]
    pick([GOOD.replace("a circle", p) + "\r" for p in prompts])
    assert RecordTable.open(tmp_path / "out" / "train.parquet").prompts == prompts


def test_bytes_that_are_not_utf8_break_their_own_row(pick):
    wrong = GOOD.encode().replace(b"circle", b"c\xe9rcle")
    report = pick(b"\n".join([GOOD.encode(), wrong, GOOD.encode()]))
    assert (report.accepted, [n for n, _ in report.rejected]) == (2, [2])
    assert "not UTF-8" in report.rejected[0][1]


def test_cells_that_are_not_utf8_or_endless_break_their_own_row(pick):
    row = b"a circle,a.png,b.png,a\n"
    wrong, endless = row.replace(b"circle", b"c\xe9rcle"), row.replace(b"circle", b"x" * 200_000)
    report = pick(b"prompt,image_a,image_b,label\n" + row + wrong + endless + row, "csv")
    assert (report.accepted, [n for n, _ in report.rejected]) == (2, [2, 3])


def test_a_failed_import_says_what_stays_and_leaves_no_parts(pick, tmp_path):
    pick([GOOD])
    with pytest.raises(InputError, match="from an earlier import"):
        pick(["{}"])
    assert json.loads((tmp_path / "out" / "import.json").read_text())["written"] is False
    with pytest.raises(InputError, match="label 0"):
        pick([f'{{{PAIR}, "label": 0}}'])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "import.json",
        "manifest.json",
        "train.parquet",
    ]


def test_data_of_another_kind_is_not_mixed_in(pick, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.json").write_text("{}")
    with pytest.raises(InputError, match="data build"):
        pick([GOOD])
