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
from rewarddance.jobs.data import pictures
from rewarddance.jobs.data.pictures import Pool, build_pictures
from rewarddance.jobs.data.select import select_pairs
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
    with pytest.raises(InputError, match="empty or missing 'label'"):
        import_preferences(tmp_path / "next" / "pairs.jsonl", "jsonl", tmp_path / "next", tmp_path / "labelled")
    (tmp_path / "next" / "pairs.jsonl").write_text("".join(json.dumps(x | {"label": "b"}) + "\n" for x in lines))
    import_preferences(tmp_path / "next" / "pairs.jsonl", "auto", tmp_path / "next", tmp_path / "labelled")
    assert RecordTable.open(tmp_path / "labelled" / "train.parquet").labels == [0.0] * 10
    with pytest.raises(InputError, match="disagreement needs 2 judges"):
        select_pairs(tmp_path / "pool", {"red": Redness()}, tmp_path / "x", 10, "disagreement")
    assert select_pairs(tmp_path / "pool", {}, tmp_path / "c", 5, "coverage")["chosen"] == 5
    with pytest.raises(InputError, match="every pair has votes"):
        select_pairs(tmp_path / "labelled", {"red": Redness()}, tmp_path / "x", 10, "uncertainty")
