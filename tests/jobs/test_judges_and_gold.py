"""Alignment with sets of judges and with a second judge as gold standard: what the log, the grids and the page hold."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from test_rollout_runs import Redness, configured

from rewarddance.align.config import ReflConfig
from rewarddance.align.probes import judge_gold
from rewarddance.apps.diagnose import diagnosis
from rewarddance.apps.report import write_report
from rewarddance.core.errors import ConfigError
from rewarddance.core.runs import RunFolder
from rewarddance.core.task import Prompt
from rewarddance.core.types import Verdict
from rewarddance.data.prompt_task import PromptTask
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_from_names, align_generator
from rewarddance.reward.composite import Composite, Standard
from rewarddance.reward.parts import MeasurePart

PROMPTS = tuple(Prompt(f"a red circle {i}") for i in range(9))


def redness(prompts, media):
    return torch.stack([m.frames[:, 0].mean() for m in media])


def darkness(prompts, media):
    return torch.stack([-m.frames.mean() for m in media])


def a_set(combine="minimum"):
    unit = Standard(0.0, 0.1, 0.1)
    parts = {"red": MeasurePart(redness), "dark": MeasurePart(darkness)}
    return Composite(parts, dict.fromkeys(parts, unit), dict.fromkeys(parts, 0.5), combine=combine)


class Blueness:
    def judge(self, comparisons):
        def blue(media):
            return media.frames[:, 2].mean() - media.frames[:, 0].mean()

        return Verdict.from_margin(8 * torch.stack([blue(c.candidate) - blue(c.reference) for c in comparisons]))


@pytest.mark.parametrize(
    ("algorithm", "score"),
    [
        ("refl", "round_robin"),
        ("nft", "round_robin"),
        ("grpo", "references"),
        ("ppo", "pointwise"),
        ("distill", "round_robin"),
        ("dpo", "win_rate"),
    ],
)
def test_every_algorithm_learns_from_a_set_and_is_watched_by_another_judge(algorithm, score, pipeline_folder, tmp_path):
    config = configured(
        algorithm, score, num_steps=2, refl=ReflConfig(num_steps=4), references={"num_candidates": 1, "kind": "random"}
    ).model_copy(update={"gold_judge": "runs/other"})  # the page names it
    task = PromptTask(PROMPTS, PROMPTS[6:], gold=judge_gold(Blueness(), "overall"))
    run = tmp_path / "run"
    align_generator(config, Sd3Generator.load(pipeline_folder), a_set(), run, task=task)
    rows = RunFolder(run).metrics()
    probes = [m for m in rows if "probe/proxy" in m]
    assert [m["step"] for m in probes] == [0, 2]
    for m in probes:
        assert 0 < m["probe/gold"] < 1
        assert {"probe/part/red", "probe/part/dark", "probe/parts_std", "probe/parts_split"} <= m.keys()
    # the start is compared with itself in another order: every judge's mean is 0, and a win rate of both orders is 1/2
    assert probes[0]["probe/part/red"] == pytest.approx(0, abs=0.02)
    assert probes[0]["probe/gold"] == pytest.approx(0.5, abs=0.05)
    assert probes[0]["probe/proxy"] == pytest.approx(0.5, abs=0.002)
    absolute = score in ("references", "pointwise") or algorithm == "refl"
    assert all(("part/red" in m) == absolute for m in rows if m["step"])
    page = write_report(run).read_text()
    for words in ("second judge", "Every judge of the set on the probe", "Disagreement of the judges", "step 2"):
        assert words in page
    titles = [f["title"] for f in diagnosis([run])["figures"]]
    assert "Disagreement of the judges" in titles


def test_each_probe_writes_a_grid_of_the_same_prompts_and_noises(pipeline_folder, tmp_path):
    config = configured("distill", num_steps=3).model_copy(update={"probe_noises": 2})
    task = PromptTask(PROMPTS, PROMPTS[6:])
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path, task=task)
    files = sorted(p.name for p in (tmp_path / "samples").glob("*.png"))
    assert files == ["step-000000.png", "step-000003.png"]
    start, end = (np.asarray(Image.open(tmp_path / "samples" / name)) for name in files)
    side = Sd3Generator.load(pipeline_folder).side
    assert start.shape == end.shape == (3 * side, 2 * side, 3)
    assert json.loads((tmp_path / "samples" / "grids.json").read_text())["prompts"] == [p.text for p in PROMPTS[6:]]
    assert (start != end).any()
    again = tmp_path / "again"
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), again, task=task)
    assert (np.asarray(Image.open(again / "samples" / files[1])) == end).all()


def test_tensorboard_holds_the_numbers_of_the_log(pipeline_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configured("distill", num_steps=3)
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"trackers": ("tensorboard",)})})
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path, task=PromptTask(PROMPTS))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "probe/proxy", "grad_norm"} <= set(events.Tags()["scalars"])
    for key in ("loss", "probe/proxy"):
        rows = [(m["step"], m[key]) for m in RunFolder(tmp_path).metrics() if key in m]
        written = events.Scalars(key)
        assert [e.step for e in written] == [step for step, _ in rows]
        assert [e.value for e in written] == pytest.approx([value for _, value in rows], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr("rewarddance.core.trackers.find_spec", lambda name: None)
    config = configured("nft")
    config = config.model_copy(
        update={"judge": "nowhere", "loop": config.loop.model_copy(update={"trackers": ("wandb",)})}
    )
    with pytest.raises(ConfigError, match="wandb is not installed; pip install wandb"):
        align_from_names(config, tmp_path / "run")


def test_the_control_without_probes_takes_no_gold_judge():
    with pytest.raises(ValueError, match="algorithm sft has no probes"):
        configured("sft", gold_judge="tiny")


def test_wandb_continues_a_run_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    from rewarddance.core.trackers import open_trackers

    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (0, 2):
        tracker = open_trackers(("wandb",), tmp_path, {"seed": 0}, first)[0]
        tracker.log(first, {"loss": 0.5})
        tracker.close()
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({f.name for f in files}) == 1
    assert all(b"loss" in f.read_bytes() for f in files)


TRACKIO = """
import socket, sys
from pathlib import Path
from rewarddance.core.trackers import open_trackers

def refuse(*args):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
run = Path(sys.argv[1])
for first in (0, 2):  # the second one is a resumed run
    tracker = open_trackers(("trackio",), run, {"seed": 7}, first)[0]
    for step in (first, first + 1):
        tracker.log(step, {"loss": 0.5 / (step + 1), "probe/proxy": 0.25})
    tracker.close()
"""


def test_trackio_keeps_a_run_in_its_folder_without_the_network(tmp_path):
    """Read back from its SQLite file by plain SQL, in a process of its own: trackio reads TRACKIO_DIR when imported."""
    pytest.importorskip("trackio")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRACKIO", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", TRACKIO, str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "connection was opened" not in done.stderr
    with closing(sqlite3.connect(run / "trackio" / "rewarddance.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{(run / 'trackio_id.txt').read_text()}"}
    written = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, m["loss"], m["probe/proxy"]) for step, m in written] == [
        (i, pytest.approx(0.5 / (i + 1)), 0.25) for i in range(4)
    ]
