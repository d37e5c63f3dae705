import json

import numpy as np

from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.lab.study_judges import PARADIGM_VARIANTS, study_judges
from rewarddance.lab.study_tables import as_markdown, judge_tables
from rewarddance.reward.train_config import RewardConfig


def test_variants_are_trained_on_the_same_data_and_tabled(vlm_folder, data_folder, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    base = RewardConfig(
        backbone=str(vlm_folder), data=str(data_folder), prompts_per_step=4, precision="fp32", **quick(num_steps=1)
    )
    names = ("bradley_terry", "pairwise, answer first")
    chosen = {n: PARADIGM_VARIANTS[n] for n in names}
    found = study_judges(base, chosen, data_folder, tmp_path, seeds=(0, 1))
    assert list(found["variants"]) == list(names)
    for entry in found["variants"].values():
        assert len(entry["seeds"]) == 2
        assert 0 <= entry["mean"]["id/accuracy_rendered"]["mean"] <= 1
        assert entry["seeds"][0]["latency_p50"] <= entry["seeds"][0]["latency_p95"]
        assert entry["seeds"][0]["comparisons_per_second"] > 0
    config = json.loads((tmp_path / "pairwise-answer_first-0" / "run.json").read_text())["config"]
    assert (config["context"]["cot"], config["paradigm"]) == ("answer_first", "generative_pairwise")
    assert config["data"].endswith("data-with-reasons")
    tables = judge_tables(found)
    assert (tmp_path / "table.md").read_text() == as_markdown(tables)
    assert [len(t.rows) for t in tables] == [2, 2]  # figures, and costs
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    again = study_judges(base, chosen, data_folder, tmp_path, seeds=(0, 1))
    assert again["variants"] == found["variants"]
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == before


def test_variants_that_own_data_cannot_feed_are_left_out_and_said_so(vlm_folder, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    rng = np.random.default_rng(0)
    media = [tuple(Media.from_numpy(rng.integers(0, 256, (48, 48, 3), np.uint8)) for _ in range(2)) for _ in range(30)]
    records = [PreferenceRecord(f"r{i}", f"a dog {i}", m, (Choice(0, 1, float(i % 2)),)) for i, m in enumerate(media)]
    write_rows((row_of(r) for r in records), tmp_path / "data" / "train.parquet")
    base = RewardConfig(
        backbone=str(vlm_folder),
        data=str(tmp_path / "data"),
        prompts_per_step=4,
        precision="fp32",
        **quick(num_steps=1),
    )
    chosen = {n: PARADIGM_VARIANTS[n] for n in ("regression", "bradley_terry", "pairwise, answer first")}
    found = study_judges(base, chosen, tmp_path / "data", tmp_path / "out", seeds=(0,))
    assert list(found["variants"]) == ["bradley_terry"]
    assert set(found["skipped"]) == {"regression", "pairwise, answer first"}
    assert 0 <= found["variants"]["bradley_terry"]["mean"]["id/accuracy"]["mean"] <= 1
