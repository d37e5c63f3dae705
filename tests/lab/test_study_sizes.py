import pytest

from rewarddance.apps.studies import pretrained_by_size
from rewarddance.core.errors import ConfigError, RunError, StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.load import load_internvl
from rewarddance.lab.assets import SizeSettings, build_size
from rewarddance.lab.study_sizes import SizesConfig, deviations_of, scaled, study_sizes
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.preferences import PreferencesConfig, embedded_records
from rewarddance.world.build.tiny_vlm import SIZES, Size, new_vlm
from rewarddance.world.build.vlm import save_vlm


@pytest.fixture
def data(tmp_path):
    """As `data build` writes it; the renders are called the generator's, so that the VLM's lessons find some."""
    for split, name, num in (("train", "train", 12), ("held_out", "id", 6), ("ood", "ood", 6)):
        records = embedded_records(PreferencesConfig(num_prompts=num, split=split, pictures=3))
        rows = ({**row_of(r), "source": "generator" if name == "train" else "rendered"} for r in records)
        write_rows(rows, tmp_path / "data" / f"{name}.parquet")
    return tmp_path / "data"


def test_sizes_are_trained_within_the_budget_and_go_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    monkeypatch.setitem(SIZES, "test-a", Size(64, 1, 32, 1, 2))
    monkeypatch.setitem(SIZES, "test-b", Size(64, 1, 64, 1, 2))
    judge = RewardConfig(prompts_per_step=4, precision="fp32", loop=LoopConfig(num_steps=1))
    config = SizesConfig(sizes=("test-a", "test-b"), vision_steps=1, vlm_steps=1, judge=judge)
    nothing = study_sizes(config, data, tmp_path / "out", budget=0.0)
    assert not nothing["sizes"]
    assert "budget ended before vision" in nothing["unfinished"]["test-a"]
    assert "| test-b | left empty: the budget ended before" in (tmp_path / "out" / "table.md").read_text()
    found = study_sizes(config, data, tmp_path / "out", budget=600.0)
    assert not found["unfinished"]
    small, large = (found["sizes"][n]["parameters"] for n in config.sizes)
    assert small < large
    assert "left empty" not in (tmp_path / "out" / "table.md").read_text()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    assert study_sizes(config, data, tmp_path / "out", budget=1.0)["sizes"] == found["sizes"]
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == before
    row = found["sizes"]["test-a"]["seeds"][0]
    assert row["pretrain_seconds"] > 0
    assert row["peak_memory_mib"] > 100
    assert row["id"]["accuracy_ci"][0] <= row["id"]["accuracy"] <= row["id"]["accuracy_ci"][1]
    # what is there of another study, in whatever phase, is not passed off as this one's
    with pytest.raises(RunError, match=r"other settings \(vlm_steps\)"):
        study_sizes(config.model_copy(update={"vlm_steps": 2}), data, tmp_path / "out", budget=600.0)
    (tmp_path / "out" / "setting.json").unlink()
    (tmp_path / "out" / "test-b" / "vlm" / "model" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"test-a.*another configuration"):
        study_sizes(config.model_copy(update={"seed": 1}), data, tmp_path / "out", budget=600.0)


def test_sizes_can_begin_from_a_small_vlm_that_was_grown(data, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    monkeypatch.setitem(SIZES, "test-a", Size(64, 1, 32, 1, 1))
    monkeypatch.setitem(SIZES, "test-b", Size(64, 2, 64, 1, 2))
    start = save_vlm(new_vlm("test-a", tokenizer), tokenizer, Preprocessor.square(48), tmp_path / "start")
    judge = RewardConfig(prompts_per_step=4, precision="fp32", loop=LoopConfig(num_steps=1))
    config = SizesConfig(sizes=("test-a", "test-b"), grow_from=str(start), vlm_steps=0, judge=judge)
    found = study_sizes(config, data, tmp_path / "none", budget=600.0)
    assert not found["unfinished"]
    rows = [found["sizes"][n]["seeds"][0] for n in config.sizes]
    assert [r["pretrain_seconds"] for r in rows] == [0, 0]
    assert not list((tmp_path / "none").rglob("vision"))
    grown = [load_internvl(tmp_path / "none" / n / "grown").model.config for n in config.sizes]
    assert [c.vision_config.num_hidden_layers for c in grown] == [1, 2]
    few = study_sizes(config.model_copy(update={"vlm_steps": 1}), data, tmp_path / "few", budget=600.0)
    assert few["sizes"]["test-b"]["seeds"][0]["pretrain_seconds"] > 0
    with pytest.raises(ConfigError, match="vlm_steps 0"):
        study_sizes(config.model_copy(update={"grow_from": None}), data, tmp_path / "no", budget=600.0)


def test_judges_with_a_pretraining_of_their_own_and_their_deviations(data, tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.reward.generative.MIN_ANSWER_MASS", 0.0)
    monkeypatch.setitem(SIZES, "test-a", Size(64, 1, 32, 1, 2))
    monkeypatch.setitem(SIZES, "test-b", Size(64, 1, 64, 1, 2))
    settings = SizeSettings(size="test-a", vision_steps=1, vlm_steps=1, large=False, device="cpu")
    made = build_size(settings, tmp_path / "pretrained", data / "train.parquet")
    assert made == tmp_path / "pretrained" / "test-a" / "vlm" / "model"
    pretrained = pretrained_by_size([str(tmp_path / "pretrained")], ("test-a", "test-b"))
    assert pretrained == {"test-a": str(made.parent)}
    judge = RewardConfig(prompts_per_step=4, precision="fp32", loop=LoopConfig(num_steps=1))
    config = SizesConfig(sizes=("test-a",), pretrained=pretrained, judge=judge, num_seeds=2, folds=2, vlm_steps=0)
    study = study_sizes(config, data, tmp_path / "out", budget=600.0)
    entry = study["sizes"]["test-a"]
    assert not (tmp_path / "out" / "test-a" / "vlm").exists()
    assert len(entry["seeds"]) == len(entry["folds"]) == 2
    runs = [RunFolder(made.parents[1] / name).metrics()[-1]["seconds"] for name in ("vision", "vlm")]
    assert entry["seeds"][0]["pretrain_seconds"] == pytest.approx(sum(runs))
    values = [row["id"]["accuracy"] for row in entry["seeds"]]
    expected = {"mean": sum(values) / 2, "std": abs(values[0] - values[1]) / 2**0.5}
    assert entry["deviations"]["seeds"]["id/accuracy"] == pytest.approx(expected)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "standard deviation over seeds" in table
    assert "standard deviation over folds" in table
    assert "latency p50" in table
    wrong = config.model_copy(update={"sizes": ("test-b",), "pretrained": {"test-b": str(made)}})
    with pytest.raises(ConfigError, match=r"1 layers of 32 units, but test-b has 1 of 64"):
        study_sizes(wrong, data, tmp_path / "wrong", budget=600.0)
    with pytest.raises(ConfigError, match="has none of the folders test-b"):
        pretrained_by_size([str(tmp_path / "pretrained")], ("test-b",))
    with pytest.raises(ConfigError, match="'other' is not one of --sizes"):
        pretrained_by_size(["other=x"], ("test-b",))


def test_deviations_are_sample_standard_deviations_where_there_are_several():
    seeds = [{"id": {"accuracy": a}, "ood": {}} for a in (0.5, 0.7, 0.9)]
    found = deviations_of({"seeds": seeds, "folds": {"a": {"spearman": 0.1}, "b": {"spearman": 0.3}}})
    assert found["seeds"] == {"id/accuracy": {"mean": pytest.approx(0.7), "std": pytest.approx(0.2)}}
    assert found["folds"] == {"spearman": {"mean": pytest.approx(0.2), "std": pytest.approx(0.02**0.5)}}
    assert deviations_of({"seeds": seeds[:1]}) == {"seeds": {}, "folds": {}}


def test_a_study_refuses_to_stop_early_before_it_has_trained_anything(data, tmp_path):
    with pytest.raises(ConfigError, match="patience"):
        study_sizes(SizesConfig(judge=RewardConfig(patience=1)), data, tmp_path / "out", budget=1.0)
    assert not (tmp_path / "out").exists()


def test_learning_rates_fall_with_the_width_as_each_optimizer_wants_it():
    found = {
        name: scaled(OptimConfig(name=name, lr=1.0), 4 * SIZES["tiny-2m"].text_width).lr for name in ("adamw", "muon")
    }
    assert found == {"adamw": 0.25, "muon": 0.5}


def test_a_study_that_is_told_to_stop_begins_no_other_size(data, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "test-a", Size(64, 1, 32, 1, 2))
    monkeypatch.setitem(SIZES, "test-b", Size(64, 1, 64, 1, 2))

    def told(*args, **kwargs):
        raise StoppedError("vision: told to stop at step 1 of 9; resume goes on")

    monkeypatch.setattr("rewarddance.lab.study_sizes.pretrain_vision", told)
    with pytest.raises(StoppedError, match="told to stop"):
        study_sizes(SizesConfig(sizes=("test-a", "test-b")), data, tmp_path / "out", budget=600.0)
    assert not (tmp_path / "out" / "study.json").exists()
