"""The study of the alarm: what it reads from the metrics of runs, and one tiny run of each kind."""

import json

import pytest

from rewarddance.align.config import AlignConfig
from rewarddance.apps.cli import main
from rewarddance.core.config import load_recipe
from rewarddance.core.errors import ConfigError
from rewarddance.lab.study_hacking import HackingStudyConfig, _check, _config, alarm_of, summarise


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


def test_a_fall_before_the_alarm_counts_too():
    metrics = [probe(0, 0.60), probe(5, 0.64), probe(10, 0.58), probe(15, 0.63, "a"), probe(20, 0.1, "b")]
    assert alarm_of(metrics)["fall_at_alarm"] == pytest.approx(0.06)


def test_falls_are_those_of_the_oracle_where_a_judge_is_the_gold_standard():
    oracle = [0.60, 0.62, 0.57, 0.40]
    metrics = [
        probe(5 * i, gold, "a" if i == 2 else None) | {"probe/truth": truth}
        for i, (gold, truth) in enumerate(zip([0.50, 0.55, 0.53, 0.52], oracle, strict=True))
    ]
    found = alarm_of(metrics)
    assert found["alarm_step"] == 10
    assert (found["fall_at_alarm"], found["fall_at_end"]) == pytest.approx((0.05, 0.22))
    assert found["change"] == pytest.approx(-0.2)


@pytest.mark.parametrize("name", ["refl", "nft"])
def test_a_hacked_run_has_no_pull_and_a_high_rate(name):
    recipe = AlignConfig.model_validate(load_recipe(f"recipes/tiny/{name}.yaml"))
    study = HackingStudyConfig(gold="judge", gold_judge="runs/other")
    hacked, sound = (_config(study, recipe, arm, 3, "runs/judge") for arm in ("hacked", "sound"))
    assert recipe.pull > 0
    assert (hacked.pull, hacked.optim.lr, hacked.rollout.score) == (0.0, 3e-3, "round_robin")
    assert (hacked.references.kind, hacked.references.num_candidates) == ("random", 1)
    same = {"pull", "optim", "rollout", "references", "algorithm"}
    assert all(getattr(sound, key) == getattr(recipe, key) for key in same)
    assert {c.gold_judge for c in (hacked, sound)} == {"runs/other"}
    assert (hacked.loop.num_steps, sound.loop.num_steps) == (20, 100)


def test_what_the_study_cannot_run_is_refused():
    with pytest.raises(ValueError, match="needs gold_judge"):
        HackingStudyConfig(gold="judge")
    with pytest.raises(ValueError, match="gold oracle takes none"):
        HackingStudyConfig(gold_judge="tiny")
    with pytest.raises(ConfigError, match="recipes of refl and nft on the embedded world without prompts, not grpo"):
        _check(HackingStudyConfig(), AlignConfig(algorithm="grpo"), ("hacked",))
    judge = HackingStudyConfig(gold="judge", gold_judge="tiny")
    with pytest.raises(ConfigError, match="the sound runs are trained with it"):
        _check(judge, AlignConfig(), ("sound",))
    _check(judge, AlignConfig(), ("hacked",))


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
    few = [
        "--hacked-steps",
        "2",
        "--sound-steps",
        "2",
        "--every",
        "1",
        "--sound-every",
        "1",
        "--probe-prompts",
        "2",
        "--num-pairs",
        "10",
    ]
    out = tmp_path / "study"
    command = ["study", "hacking", "--data", str(data_folder), "--out", str(out), "--seeds", "0", *few]
    assert main(command) == 0
    study = json.loads((out / "study.json").read_text())
    assert {name: r["probes"] for name, r in study["runs"].items()} == {"hacked-0": 3, "sound-0": 3}
    assert main(command) == 0  # nothing is run again


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hacked_run_of_nft_is_watched_by_the_shipped_judge(data_folder, tmp_path):
    few = ["--hacked-steps", "1", "--every", "1", "--probe-prompts", "2", "--num-pairs", "10", "--seeds", "0"]
    judge = ["--recipe", "recipes/tiny/nft.yaml", "--arms", "hacked", "--gold", "judge", "--gold-judge", "tiny"]
    assert main(["study", "hacking", "--data", str(data_folder), "--out", str(tmp_path), *few, *judge]) == 0
    rows = [json.loads(row) for row in (tmp_path / "hacked-0" / "metrics.jsonl").read_text().splitlines()]
    probes = [m for m in rows if "probe/gold" in m]
    assert [m["step"] for m in probes] == [0, 1]
    assert probes[0]["probe/gold"] == pytest.approx(0.5, abs=0.01)  # the start against the start
    assert probes[0]["probe/truth"] > 0  # the oracle's fidelity
    assert all(m["frozen_distance"] == 0 for m in rows if "frozen_distance" in m)
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["runs"]["hacked-0"]["change"] == pytest.approx(probes[1]["probe/truth"] - probes[0]["probe/truth"])
