"""Files of prompts as people save them: the prompts are read as they are meant, or one line names the file."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from rewarddance.core.errors import InputError
from rewarddance.data.prompts import read_prompts

LINES = "a dog\nün café\n"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path):
    return [p.text for p in read_prompts(path)[0]]


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.encode("utf-8-sig"),
        LINES.replace("\n", "\r\n"),
        "\n a dog \n\nün café\na dog",
    ],
    ids=["plain", "byte order mark", "windows", "blank and repeated lines"],
)
def test_every_distinct_line_is_a_prompt(content, tmp_path):
    path = write(tmp_path / "p.txt", content)
    assert texts(path) == ["a dog", "ün café"]
    assert read_prompts(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_prompt_is_enough(tmp_path):
    assert texts(write(tmp_path / "p.txt", "a dog")) == ["a dog"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LINES.encode("utf-16"), "not UTF-8 (invalid start byte at byte 1); save it as UTF-8"),
        (b"a dog\na cat\n".decode().encode("utf-16-le"), "holds NUL characters, probably UTF-16; save it as UTF-8"),
        (LINES.encode("latin-1"), "not UTF-8 (invalid start byte at byte 7); save it as UTF-8"),
        ("", "holds no prompts"),
        ("\ufeff \n\n", "holds no prompts"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "Latin-1", "empty", "blank"],
)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_file_that_cannot_be_read_is_named(content, reason, suffix, tmp_path):
    path = write(tmp_path / f"p.{suffix}", content)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path, why in ((tmp_path / "none.txt", "no such file of prompts"), (tmp_path, "pictures without captions")):
        with pytest.raises(InputError, match=f"{path}: .*{why}"):
            read_prompts(path)


def test_json_lines_keep_their_further_fields(tmp_path):
    pixels = np.full((4, 6, 3), 51, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    rows = [
        {"prompt": " a\u2028dog ", "tag": "single", "include": [{"class": "dog", "count": 1}]},
        {"prompt": "a cat", "category": "animals", "condition": "start.png"},
        {"prompt": "a cat", "category": "again"},
    ]
    lines = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    first, second = read_prompts(write(tmp_path / "p.jsonl", ("\ufeff" + lines)))[0]
    assert (first.text, first.category, first.condition) == ("a\u2028dog", "single", None)
    assert first.fields == {"tag": "single", "include": [{"class": "dog", "count": 1}]}
    assert (second.text, second.category, second.fields) == ("a cat", "animals", {})
    assert np.array_equal(second.condition.to_numpy(), pixels)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a cat", "not JSON"),
        ('["a cat"]', "needs an object with a text `prompt`"),
        ('{"text": "a cat"}', "needs an object with a text `prompt`"),
        ('{"prompt": "  "}', "needs an object with a text `prompt`"),
        ('{"prompt": "a \\u0000cat"}', "holds a NUL"),
        ('{"prompt": "a \\ud83d"}', "half of a character"),
        ('{"prompt": "a cat", "condition": "none.png"}', "none.png: no such file"),
    ],
)
def test_a_broken_line_is_named_by_its_number(line, reason, tmp_path):
    path = write(tmp_path / "p.jsonl", f'{{"prompt": "a dog"}}\n\n{line}\n')
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert reason in str(caught.value)
