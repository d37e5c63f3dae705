"""A pool of pictures of a file of prompts: whole after kills, the same for any number of processes; selection."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import Redness

from rewarddance.core.errors import InputError, RunError
from rewarddance.core.types import Verdict
from rewarddance.data.importers import import_preferences
from rewarddance.data.parquet import RecordTable, voted_records
from rewarddance.data.prompts import read_prompts
from rewarddance.data.votes import MediaRef, Vote, VotedRecord
from rewarddance.jobs.data import pictures
from rewarddance.jobs.data.pictures import Pool, build_pictures
from rewarddance.jobs.data.select import open_pairs, select_pairs
from rewarddance.jobs.sample import Sampling

PROMPTS = [f"a red circle, number {i}" for i in range(7)]


@pytest.fixture
def pool(pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PART", 3)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    sampling = Sampling(str(pipeline_folder), sample_batch=4, precision="fp32")
    return Pool(sampling, images_per_prompt=2, num_steps=(1, 2), guidance=(1.0, 2.0))


def rows(out):
    return [
        (r.record_id, r.prompt, [(m.sha256, m.settings) for m in r.media]) for r in voted_records(out / "train.parquet")
    ]


def test_every_prompt_seed_and_setting_is_there_once_with_its_settings(tmp_path, pool):
    made = build_pictures(tmp_path / "prompts.txt", tmp_path / "out", pool)
    assert made == {"prompts": 7, "pictures": 7 * 2 * 4, "complete": True}
    built = rows(tmp_path / "out")
    assert [prompt for _, prompt, _ in built] == PROMPTS
    settings = [json.loads(text) for _, text in built[0][2]]
    assert [(s["num_steps"], s["guidance"]) for s in settings] == [
        (n, g) for n in (1, 2) for g in (1.0, 2.0) for _ in range(2)
    ]
    assert [s["seed"] for s in settings] == [settings[0]["seed"], settings[1]["seed"]] * 4
    assert len({sha for _, _, media in built for sha, _ in media}) == 56
    assert not (tmp_path / "out" / ".parts").exists()
    with pytest.raises(RunError, match=r"other settings \(seed\)"):
        build_pictures(tmp_path / "prompts.txt", tmp_path / "out", Pool(pool.sampling, 2, (1, 2), (1.0, 2.0), seed=1))


def test_a_stop_in_the_middle_leaves_no_gap_and_no_duplicate(tmp_path, pool, monkeypatch):
    build_pictures(tmp_path / "prompts.txt", tmp_path / "whole", pool)
    real, calls = pictures.write_rows, []

    def stopping(part, path):
        calls.append(path)
        if len(calls) == 2:
            next(iter(part))
            raise KeyboardInterrupt
        return real(part, path)

    monkeypatch.setattr(pictures, "write_rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_pictures(tmp_path / "prompts.txt", tmp_path / "out", pool)
    assert not (tmp_path / "out" / "train.parquet").exists()
    build_pictures(tmp_path / "prompts.txt", tmp_path / "out", pool)
    assert [p.parent.name for p in calls] == ["0000000", "0000003", "0000003", "0000006"]
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_killed_and_concurrent_processes_give_the_rows_of_one(tmp_path, pool):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle, number {i}" for i in range(100)))
    command = [sys.executable, "-m", "rewarddance", "data", "build", "--prompts", str(tmp_path / "prompts.txt")]
    command += ["--generator", pool.sampling.generator, "--images-per-prompt", "2", "--num-steps", "4"]
    alone = tmp_path / "alone"
    subprocess.run([*command, "--out", str(alone)], check=True, capture_output=True)
    shared = [*command, "--out", str(tmp_path / "shared")]
    first = subprocess.Popen(shared, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "shared").glob(".parts/*/.rows.parquet.partial")) and first.poll() is None:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    both = [subprocess.Popen(shared, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    assert rows(tmp_path / "shared") == rows(alone)


def test_prompt_files_of_public_benchmarks(tmp_path):
    def read(name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return [(p.text, p.category) for p in read_prompts(tmp_path / name)[0]]

    coco = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "A cat. "}, {"caption": "A dog."}]}
    assert read("captions_val2017.json", coco) == [("A cat.", ""), ("A dog.", "")]
    vbench = [{"prompt_en": "a bird", "dimension": ["color", "overall_consistency"]}]
    assert read("VBench_full_info.json", vbench) == [("a bird", "color")]
    geneval = {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"}
    assert read("evaluation_metadata.jsonl", geneval) == [("a photo of two cups", "counting")]
    assert read("color_val.txt", "a green bench\na blue bowl\n") == [("a green bench", ""), ("a blue bowl", "")]
    with pytest.raises(InputError, match="entry 1: needs an object with a text"):
        read("x.json", [{"question": "?"}])


class Opposite(Redness):
    """Prefers what `Redness` does not, and refuses prompts with the number 3."""

    def judge(self, comparisons):
        verdict = super().judge(comparisons)
        odd = torch.tensor(["number 3" in c.prompt for c in comparisons])
        return Verdict.from_margin(torch.where(odd, torch.nan, -verdict.margin))


def test_selected_pairs_can_be_labelled_and_imported(tmp_path, pool):
    build_pictures(tmp_path / "prompts.txt", tmp_path / "pool", pool)
    judges = {"red": Redness(), "not red": Opposite()}
    made = select_pairs(tmp_path / "pool", judges, tmp_path / "next", 10, "disagreement", most_per_prompt=2)
    assert (made["open_pairs"], made["chosen"], made["refused_by_a_judge"]) == (7 * 28, 10, 28)
    lines = [json.loads(x) for x in (tmp_path / "next" / "pairs.jsonl").read_text().splitlines()]
    assert all("number 3" not in line["prompt"] for line in lines)
    for line in lines:
        assert line["judges"]["red"] == pytest.approx(1 - line["judges"]["not red"])
    assert max(sum(x["prompt"] == p for x in lines) for p in PROMPTS) == 2
    sure = [abs(line["judges"]["red"] - 0.5) for line in lines]
    assert sure == sorted(sure, reverse=True)
    pairs = list(voted_records(tmp_path / "next" / "train.parquet"))
    assert [(r.record_id, r.prompt, len(r.candidates), r.votes) for r in pairs] == [
        (line["id"], line["prompt"], 2, ()) for line in lines
    ]
    for record, line in zip(pairs, lines, strict=True):
        assert [m.data for m in record.media] == [(tmp_path / "next" / line[f"image_{s}"]).read_bytes() for s in "ab"]
    empty = import_preferences(tmp_path / "next" / "pairs.jsonl", "jsonl", tmp_path / "next", tmp_path / "unlabelled")
    assert (empty.accepted, empty.without_votes) == (10, 10)
    (tmp_path / "next" / "pairs.jsonl").write_text("".join(json.dumps(x | {"label": "b"}) + "\n" for x in lines))
    import_preferences(tmp_path / "next" / "pairs.jsonl", "auto", tmp_path / "next", tmp_path / "labelled")
    assert RecordTable.open(tmp_path / "labelled" / "train.parquet").labels == [0.0] * 10
    with pytest.raises(InputError, match="disagreement needs 2 judges"):
        select_pairs(tmp_path / "pool", {"red": Redness()}, tmp_path / "x", 10, "disagreement")
    for _ in range(2):  # its own folder may be written again
        assert select_pairs(tmp_path / "pool", {}, tmp_path / "c", 5, "coverage")["chosen"] == 5
    with pytest.raises(InputError, match="pool: holds other data"):
        select_pairs(tmp_path / "pool", {}, tmp_path / "pool", 5, "coverage")
    with pytest.raises(InputError, match="every pair has votes"):
        select_pairs(tmp_path / "labelled", {"red": Redness()}, tmp_path / "x", 10, "uncertainty")


def test_pairs_rated_one_picture_at_a_time_are_not_open():
    media = tuple(MediaRef(path=f"{i}.png", sha256=str(i)) for i in range(3))
    rated = [Vote("rating", (i,), (3.0,), annotator="x", scale=(1, 5)) for i in range(2)]
    record = VotedRecord("r", "p", media, tuple(rated))
    assert [(p.first, p.second) for p in open_pairs(record, "overall")] == [(0, 2), (1, 2)]
    assert len(open_pairs(record, "style")) == 3


def test_people_can_judge_selected_pairs_and_own_pictures_without_a_ranking(tmp_path, pool):
    """The two ways into `annotate` of docs/guides/people.md."""
    pytest.importorskip("fastapi")
    from rewarddance.apps.annotate.config import DeskConfig
    from rewarddance.apps.annotate.database import open_database
    from rewarddance.apps.annotate.filling import fill

    build_pictures(tmp_path / "prompts.txt", tmp_path / "pool", pool)
    select_pairs(tmp_path / "pool", {"red": Redness()}, tmp_path / "next", 6, "uncertainty")
    database = open_database(f"sqlite:///{tmp_path / 'next.db'}")
    filled = fill(database, tmp_path / "next", DeskConfig(checks=0.0))
    assert (filled.records, filled.items, filled.passed_over) == (6, 6, 0)
    database.close()

    pictures = sorted(p.name for p in (tmp_path / "next" / "media").iterdir())[:3]
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "a red circle", "images": pictures}))
    import_preferences(tmp_path / "own.jsonl", "auto", tmp_path / "next" / "media", tmp_path / "own")
    database = open_database(f"sqlite:///{tmp_path / 'own.db'}")
    filled = fill(database, tmp_path / "own", DeskConfig(checks=0.0))
    assert (filled.records, filled.items) == (1, 3)
    database.close()
