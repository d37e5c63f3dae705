import shutil
from dataclasses import replace

import pytest

from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.cross_validate import cross_validate, folds_by_group, folds_by_prompt
from rewarddance.jobs.evaluate import evaluate_judge_on_data
from rewarddance.reward.train_config import RewardConfig


def test_folds_share_no_prompt_and_cover_all():
    prompts = [f"p{i % 11}" for i in range(30)]
    folds = folds_by_prompt(prompts, 4, seed=0)
    assert sorted(i for f in folds for i in f.held_out) == list(range(30))
    for f in folds:
        assert not {prompts[i] for i in f.train} & {prompts[i] for i in f.held_out}
        assert len(f.train) + len(f.held_out) == 30
    with pytest.raises(InputError, match="folds of 11 prompts"):
        folds_by_prompt(prompts, 12, 0)


def test_groups_are_held_out_whole():
    values = ["flat", "striped", None, "flat"]
    folds = folds_by_group(values, "style")
    assert [(f.name, f.train, f.held_out) for f in folds] == [
        ("style-flat", (1, 2), (0, 3)),
        ("style-striped", (0, 2, 3), (1,)),
    ]
    with pytest.raises(InputError, match="1 of its values"):
        folds_by_group(["a", "a"], "annotator")


def test_folds_are_trained_measured_summarised_and_kept(vlm_folder, data_folder, quick, tmp_path):
    config = RewardConfig(
        backbone=str(vlm_folder),
        data=str(data_folder),
        paradigm="bradley_terry",
        prompts_per_step=4,
        **quick(num_steps=1),
    )
    table = RecordTable.open(data_folder / "train.parquet")
    styles = table.group("style")
    assert set(styles) <= {"flat", "outline", "striped"}
    assert set(table.group("source")) == {"rendered"}
    folds = folds_by_group(styles, "style")
    found = cross_validate(config, folds, table, tmp_path)
    assert set(found["folds"]) == {f.name for f in folds}
    accuracy = [f["accuracy"] for f in found["folds"].values()]
    assert found["mean"]["accuracy"]["mean"] == pytest.approx(sum(accuracy) / len(accuracy))
    # a fold knows what it was trained on, whatever its seed would hold out
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(data_folder / "train.parquet", only)
    name, figures = next(iter(found["folds"].items()))
    again = evaluate_judge_on_data(tmp_path / name, only)["id"]
    assert again["num_trained_on"] == figures["num_train"]
    assert again["accuracy"] == pytest.approx(figures["accuracy"])
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    assert cross_validate(config, folds, table, tmp_path)["folds"] == found["folds"]
    # figures of another configuration, or of other rows, are not passed off as this one's
    with pytest.raises(RunError, match="another configuration \\(label_smoothing\\)"):
        cross_validate(config.model_copy(update={"label_smoothing": 0.1}), folds, table, tmp_path)
    slower = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e-5})})
    with pytest.raises(RunError, match=r"another configuration \(optim\.lr\)"):  # though a resumption may change it
        cross_validate(slower, folds, table, tmp_path)
    with pytest.raises(ConfigError, match="patience"):
        cross_validate(config.model_copy(update={"patience": 1}), folds, table, tmp_path / "early")
    other = tmp_path / "other.parquet"  # the same prompts, one label turned
    records = list(table)
    first = records[0].choices[0]
    turned = (replace(first, label=1 - first.label + 0.01), *records[0].choices[1:])
    write_rows((row_of(r) for r in [replace(records[0], choices=turned), *records[1:]]), other)
    with pytest.raises(RunError, match=r"other settings \(rows_sha256\)"):
        cross_validate(config, folds, RecordTable.open(other), tmp_path)
    with pytest.raises(RunError, match=r"other settings \(rows_sha256\)"):
        cross_validate(config, [replace(folds[0], train=folds[0].train[1:])], table, tmp_path)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == before
