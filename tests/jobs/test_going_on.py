"""Training on from a judge: what it was trained on before is not held out, and is not forgotten."""

import json

import pytest
from small_runs import reward_config

from rewarddance.core.errors import InputError
from rewarddance.core.seen import FILE, fingerprint, read_seen
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.cross_validate import cross_validate, folds_by_prompt
from rewarddance.jobs.train import load_sets, split_table, train_from_data
from rewarddance.lab.study_judges import measured_judge


@pytest.fixture(scope="module")
def first(vlm_folder, data_folder, quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "run"
    train_from_data(reward_config(vlm_folder, data_folder, quick, "bradley_terry", num_steps=1), out)
    return out


def seen_of(prompts):
    return frozenset(fingerprint(p) for p in prompts)


def test_no_prompt_that_was_seen_is_for_validation(data_folder):
    table = RecordTable.open(data_folder / "train.parquet")
    distinct = sorted(set(table.prompts))
    known = distinct[: len(distinct) // 2]
    train, held = split_table(table, 0.5, 0, seen_of(known))
    assert not set(held.prompts) & set(known)
    assert set(held.prompts) | set(train.prompts) == set(distinct)
    with pytest.raises(InputError, match="knows all its prompts"):
        split_table(table, 0.1, 0, seen_of(distinct))
    held_out = RecordTable.open(data_folder / "id.parquet")
    told = held_out.prompts[0]
    _, sets = load_sets(data_folder, 0, seen=seen_of([told]))
    assert told in held_out.prompts
    assert told not in sets["id"].prompts


def test_a_judge_that_goes_on_knows_what_the_first_one_saw(first, data_folder, quick, tmp_path):
    before = read_seen(first / "model")
    other = RecordTable.open(data_folder / "id.parquet")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.parquet").write_bytes((data_folder / "id.parquet").read_bytes())
    train_from_data(reward_config(first, folder, quick, "bradley_terry", num_steps=1), tmp_path / "second")
    after = read_seen(tmp_path / "second" / "model")
    assert before < after <= before | seen_of(other.prompts)


def test_studies_and_folds_remember_what_the_first_one_saw(first, data_folder, quick, tmp_path):
    before, folder = read_seen(first / "model"), tmp_path / "data"
    folder.mkdir()
    (folder / "train.parquet").write_bytes((data_folder / "id.parquet").read_bytes())
    config = reward_config(first, folder, quick, "bradley_terry", num_steps=1)
    measured_judge(config, tmp_path / "study", "goes on")
    assert before < read_seen(tmp_path / "study" / "model")
    table = RecordTable.open(folder / "train.parquet")
    cross_validate(config, folds_by_prompt(table.prompts, 2, 0), table, tmp_path / "folds")
    models = list((tmp_path / "folds").glob("*/model"))
    assert len(models) == 2
    assert all(before < read_seen(model) for model in models)


def test_nobody_knows_what_an_unknown_judge_saw(first, data_folder, quick, tmp_path, capsys):
    folder = tmp_path / "judge"
    folder.mkdir()
    for file in (first / "model").iterdir():
        if file.name != FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    train_from_data(reward_config(folder, data_folder, quick, "bradley_terry", num_steps=1), tmp_path / "run")
    assert f"a judge without {FILE}" in capsys.readouterr().err
    assert read_seen(tmp_path / "run" / "model") is None


def test_folds_of_what_a_judge_knows_are_refused(first, data_folder, quick, tmp_path):
    table = RecordTable.open(data_folder / "train.parquet")
    config = reward_config(first, data_folder, quick, "bradley_terry", num_steps=1)
    with pytest.raises(InputError, match="no fold is new to it"):
        cross_validate(config, folds_by_prompt(table.prompts, 2, 0), table, tmp_path)


def test_a_larger_pass_may_be_asked_for_when_a_run_goes_on(vlm_folder, data_folder, quick, tmp_path):
    config = reward_config(vlm_folder, data_folder, quick, "bradley_terry", num_steps=2, save_every=1)
    small = config.model_copy(update={"micro_batch": 2})
    train_from_data(small, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "step_2"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    larger = small.model_copy(update={"micro_batch": 4})
    train_from_data(larger, tmp_path / "run", resume=True)
    assert json.loads((last / "state.json").read_text())["extra"]["micro_batch"] == 4
