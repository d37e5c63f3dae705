"""The data commands from the command line: import, statistics, split, export."""

import json

import pytest
from support import layouts

from rewarddance.apps.cli import main


@pytest.fixture
def run(capsys):
    def run(*args):
        status = main(list(map(str, args)))
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, " ".join(err.split())

    return run


def test_from_a_public_file_to_statistics_a_split_and_an_export(tmp_path, run):
    source = layouts.hpdv2(tmp_path, 8)
    status, figures, said = run("data", "import", source, "--out", tmp_path / "mine")
    assert (status, figures["format"], figures["accepted"]) == (0, "hpdv2", 8)
    assert "took the file for hpdv2: rows have prompt, human_preference, file_path" in said
    status, figures, _ = run("data", "stats", tmp_path / "mine")
    assert figures["splits"]["train"]["labels"] == {"first": 4, "second": 4}
    assert figures["splits"]["train"]["duplicates"]["pictures"] == 16
    status, figures, _ = run("data", "split", tmp_path / "mine", "--out", tmp_path / "split", "--share", "0.25")
    assert (status, figures["train"], figures["id"]) == (0, 6, 2)
    status, figures, _ = run("data", "stats", tmp_path / "split", "--no-pixels")
    assert figures["leakage"]["train and id"]["records_concerned"] == 0
    status, figures, _ = run("data", "export", tmp_path / "split", "--format", "trl", "--out", tmp_path / "export")
    assert (status, figures["records"], figures["the_format_loses"]) == (0, 6, "ties; who voted")
    status, _, said = run("data", "export", tmp_path / "split", "--format", "videogen", "--out", tmp_path / "export")
    assert status == 1
    assert "no record fits the format videogen (6 x not a pair of clips)" in said


def test_wrong_uses_are_one_line(tmp_path, run):
    assert run("data", "split", tmp_path, "--out", tmp_path / "x", "--share", "2")[0] == 2
    status, _, said = run("data", "build", "--out", tmp_path / "x", "--guidance", "2.0")
    assert (status, "data build: --guidance cannot be used in a build without --prompts" in said) == (2, True)
    status, _, said = run("data", "stats", tmp_path)
    assert (status, "holds no train.parquet" in said) == (1, True)
    status, _, said = run("data", "import", tmp_path / "none.json", "--out", tmp_path / "x")
    assert (status, "no such file" in said) == (1, True)
