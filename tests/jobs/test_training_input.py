"""What judge training is given: every key reaches the step, and bad input is named before or when it does harm."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from small_runs import reward_config

from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.load import ASSETS, load_backbone, load_judge
from rewarddance.jobs.train import changed_question, check_labels, train_from_data, train_judge
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.context import Context
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import training_batch


def test_a_second_run_in_the_same_folder_is_refused(vlm_folder, data_folder, quick, tmp_path):
    config = reward_config(vlm_folder, data_folder, quick, num_steps=1)
    train_from_data(config, tmp_path / "run")
    with pytest.raises(RunError, match="--resume"):
        train_from_data(config, tmp_path / "run")


def test_labels_that_teach_nothing_stop_and_one_sided_ones_warn(data_folder, tmp_path):
    def table(label):
        records = [replace(r, choices=tuple(replace(c, label=label) for c in r.choices)) for r in opened[:3]]
        write_rows((row_of(r) for r in records), tmp_path / f"{label}.parquet")
        return RecordTable.open(tmp_path / f"{label}.parquet")

    opened = RecordTable.open(data_folder / "train.parquet")
    assert check_labels(opened) is None
    with pytest.raises(InputError, match="all of them ties"):
        check_labels(table(0.5))
    assert "every choice names the first picture" in check_labels(table(1.0))
    assert "second" in check_labels(table(0.0))


def test_every_key_of_regularisation_and_context_reaches_the_step(
    vlm_folder, data_folder, quick, tmp_path, monkeypatch
):
    made = {}

    class EnoughError(Exception):
        pass

    def accumulator(judge, parameters, paradigm, smoothing, size, say, **rest):
        found = (getattr(m, "attention_dropout", None) for m in judge.engine.backbone.module.modules())
        dropped = {share for share in found if isinstance(share, float)}
        made.update(rest, smoothing=smoothing, size=size, dropped=dropped)
        raise EnoughError

    monkeypatch.setattr("rewarddance.reward.training.Accumulator", accumulator)
    told = {"label_smoothing": 0.1, "reason_weight": 0.3, "dropout": 0.2, "micro_batch": 3}
    base = reward_config(vlm_folder, data_folder, quick).model_dump()
    for context in ({"layout": "two_questions", "reference": "best_of_n"}, {"layout": "strict"}):
        config = RewardConfig.model_validate({**base, **told, "context": context})
        with pytest.raises(EnoughError):
            train_from_data(config, tmp_path / context["layout"])
        assert (made["smoothing"], made["reason_weight"], made["size"], made["dropped"]) == (0.1, 0.3, 3, {0.2})
        assert made["reference"] == context.get("reference", "random")
        assert made["shuffle"] == (context["layout"] == "two_questions")


def test_a_generative_judge_begins_as_sure_as_it_may_be(data_folder, quick, tmp_path):
    """From the embedded VLM, whose answers are logits apart and hardly better than a coin."""
    first = {}
    for name, temperature in (("fit", "fit"), ("given", 7.0), ("as-it-is", 1.0)):
        changes = {"temperature": temperature, "precision": "fp32", **quick(1, validate_every=9)}
        config = RewardConfig(backbone="tiny", data=str(data_folder), prompts_per_step=8, **changes)
        train_from_data(config, tmp_path / name)
        first[name] = RunFolder(tmp_path / name).metrics()[0]["loss"]
        kept = load_judge(tmp_path / name).spec.temperature
        assert kept == temperature if temperature != "fit" else kept > 2
    assert first["fit"] < first["given"] + 0.01
    assert first["fit"] < 0.75 < 1.0 < first["as-it-is"]


def test_a_run_that_goes_on_keeps_its_temperature(vlm_folder, data_folder, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.reward.training.starting_temperature", lambda *rest, **named: 3.0)
    config = reward_config(vlm_folder, data_folder, quick)
    train_from_data(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    monkeypatch.setattr("rewarddance.reward.training.starting_temperature", lambda *rest, **named: 5.0)
    train_from_data(config, tmp_path / "run", resume=True)
    assert load_judge(tmp_path / "run").spec.temperature == 3.0


def test_training_on_with_another_temperature_says_so(vlm_folder, tmp_path):
    judge = shutil.copytree(vlm_folder, tmp_path / "judge")
    (judge / "judge.json").write_text(JudgeSpec(temperature=8.0, trained=True).model_dump_json())
    config = RewardConfig(backbone=str(judge))
    assert changed_question(config) is None  # fit
    assert changed_question(config.model_copy(update={"temperature": 8.0})) is None
    assert "divided by 8, now by 1.0" in changed_question(config.model_copy(update={"temperature": 1.0}))
    scalar = RewardConfig(backbone=str(judge), paradigm="bradley_terry", temperature=1.0)
    assert changed_question(scalar) is None


def _without_template(folder):
    (folder / "chat_template.jinja").unlink()


def _that_splits_yes(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) not in ("yes", "\u0120yes")]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def _of_another_kind(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def _without_weights(folder):
    (folder / "model.safetensors").unlink()


def _of_half_its_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _of_half_a_config(folder):
    (folder / "config.json").write_text('{"model_type": "internvl"')


def test_training_on_from_a_judge_that_knows_another_question_says_so(vlm_folder):
    assert changed_question(RewardConfig(backbone=str(vlm_folder))) is None
    judge = str(ASSETS / "judge-tiny")
    assert changed_question(RewardConfig(backbone=judge, context={"template": "embedded"})) is None
    said = changed_question(RewardConfig(backbone=judge, context={"template": "embedded-roles"}))
    assert "words of pairwise: 'question: is image {candidate} the better one?', now 'question: is the cand" in said


@pytest.mark.parametrize("context", [{"reference": "none"}, Context(reference="none")])
def test_the_generative_judge_without_a_reference_is_the_pointwise_one(context):
    config = RewardConfig(context=context)
    assert (config.paradigm, config.context.reference) == ("generative_pointwise", "none")
    assert RewardConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("paradigm", "reference", "message"),
    [
        ("bradley_terry", "none", "bradley_terry learns from comparisons"),
        ("regression", "best_of_n", "regression looks at one picture"),
        ("regression", "random", "label_smoothing moves choices towards a tie"),
    ],
)
def test_paradigms_that_have_no_use_for_a_reference_say_so(paradigm, reference, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(paradigm=paradigm, context={"reference": reference}, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_template, "no chat template; put a chat_template.jinja beside"),
        (_that_splits_yes, "no single token for the answer word 'yes'"),
        (_of_another_kind, "architecture 'bert' is not supported; known: 'internvl'"),
        (_without_weights, "backbone: cannot be loaded"),
        (_of_half_its_weights, "cannot be (read|loaded)"),
        (_of_half_a_config, "config.json is not JSON of a model"),
    ],
    ids=["template", "yes", "architecture", "no weights", "half its weights", "half a config"],
)
def test_a_backbone_folder_that_cannot_judge_is_refused_before_anything_is_trained(
    spoil, message, vlm_folder, data_folder, quick, tmp_path
):
    folder = tmp_path / "backbone"
    shutil.copytree(vlm_folder, folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        train_from_data(reward_config(folder, data_folder, quick), tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        load_judge(folder)


def test_a_loss_that_is_no_number_stops_the_run_with_the_record_and_keeps_its_checkpoint(
    vlm_folder, data_folder, quick, tmp_path
):
    records = list(RecordTable.open(data_folder / "train.parquet"))[:4]
    spoilt = records[0].media[0].frames.clone()
    spoilt[0, 0, 0, 0] = torch.nan
    config = reward_config(vlm_folder, data_folder, quick, num_steps=4, save_every=1)
    config = config.model_copy(update={"prompts_per_step": 1, "temperature": 1.0})
    second = training_batch(records, config, 1)[0]
    i = next(i for i, r in enumerate(records) if r is second)
    bad = replace(second, media=(Media(spoilt), *second.media[1:]))
    train = [bad if k == i else r for k, r in enumerate(records)]
    with pytest.raises(RunError, match=rf"step 1: .*{re.escape(second.record_id)}.*keeps its checkpoint of step 1"):
        train_judge(config, load_backbone(vlm_folder), train, {}, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_1"]
    fitted = config.model_copy(update={"temperature": "fit"})
    with pytest.raises(RunError, match=rf"these records is not a number: {re.escape(second.record_id)};"):
        train_judge(fitted, load_backbone(vlm_folder), train, {}, tmp_path / "fitted")
    train_judge(config, load_backbone(vlm_folder), records, {}, tmp_path / "run", resume=True)  # mended, it goes on
    assert RunFolder(tmp_path / "run").metrics()[-1]["step"] == 4
