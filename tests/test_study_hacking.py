"""The study of the alarm: what it reads from the metrics of runs, and one tiny run of each kind."""

import json

import pytest

from rewarddance.apps.cli import main
from rewarddance.lab.study_hacking import alarm_of, summarise


def probe(step, gold, alarm=None):
    return {"step": step, "probe/gold": gold} | ({"alarm": alarm} if alarm else {})


def test_the_fall_is_from_the_best_probe_before():
    metrics = [
        probe(0, 0.60),
        {"step": 3, "loss": 1.0},
        probe(5, 0.64),
        probe(10, 0.62, "hacking"),
        probe(15, 0.5, "x"),
    ]
    found = alarm_of(metrics)
    assert (found["alarm_step"], found["alarm"], found["probes"]) == (10, "hacking", 4)
    assert found["fall_at_alarm"] == pytest.approx(0.02)
    assert found["fall_at_end"] == pytest.approx(0.14)
    assert found["change"] == pytest.approx(-0.1)
    assert alarm_of(metrics[:3])["alarm_step"] is None


def test_alarms_are_counted_by_how_runs_end(tmp_path):
    runs = {
        "hacked-0": [probe(0, 0.6), probe(5, 0.58, "a"), probe(10, 0.4)],  # in time
        "hacked-1": [probe(0, 0.6), probe(5, 0.5, "a")],  # too late
        "hacked-2": [probe(0, 0.6), probe(5, 0.59)],  # did not fall
        "sound-0": [probe(0, 0.6), probe(5, 0.55, "a"), probe(10, 0.65)],  # a false alarm
        "sound-1": [probe(0, 0.6), probe(5, 0.62)],
        "sound-2": [probe(0, 0.6), probe(5, 0.57, "a")],  # ends worse, so the alarm was right
    }
    for name, lines in runs.items():
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "adapter" / "adapter.json").write_text("{}")
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    found = summarise(tmp_path, 0.03)
    assert found["hacked"] == {"runs": 3, "gold_fell": 2, "alarm": 2, "alarm_in_time": 1}
    assert found["sound"] == {"runs": 3, "end_better": 2, "false_alarms": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_seed_of_each_kind(data_folder, tmp_path):
    few = ["--hacked-steps", "2", "--sound-steps", "2", "--every", "1", "--probe-prompts", "2", "--num-pairs", "10"]
    out = tmp_path / "study"
    command = ["study", "hacking", "--data", str(data_folder), "--out", str(out), "--seeds", "0", *few]
    assert main(command) == 0
    study = json.loads((out / "study.json").read_text())
    assert {name: r["probes"] for name, r in study["runs"].items()} == {"hacked-0": 3, "sound-0": 3}
    assert main(command) == 0  # nothing is run again
