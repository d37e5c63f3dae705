"""Alignments that start from an adapter or are resumed, and folders of runs in places where they do not belong."""

import json
import re

import pytest
from small_runs import Redness, reward_config

from rewarddance.apps.cli import main
from rewarddance.core.errors import RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.core.task import Prompt
from rewarddance.data.prompt_task import PromptTask
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_from_names, align_generator
from rewarddance.jobs.load import load_judge, warn_of_cut_prompts
from rewarddance.jobs.sample import Sampling, sample_to_folder
from rewarddance.jobs.train import train_from_data

LONG = "flat drawing of " + "a red circle and " * 12 + "a blue square"


def redness(prompts, media, start):
    """A gold standard that knows only the picture."""
    return [float(m.frames[:, 0].mean()) for m in media]


TASK = PromptTask((Prompt("a dog"), Prompt("a cat"), Prompt(LONG)), gold=redness)


@pytest.fixture
def aligned(pipeline_folder, quick_align, tmp_path):
    """Align the small generator; returns what was printed by step 0 and the probes' gold by step."""

    def run(name, resume=False, num_steps=3, **changes):
        config = quick_align("none", precision="fp32", **changes).model_copy(
            update={
                "loop": LoopConfig(num_steps=num_steps, validate_every=3, save_every=1),
                "optim": OptimConfig(lr=0.02, ema_decay=0.5),
            }
        )
        generator = Sd3Generator.load(pipeline_folder)
        align_generator(config, generator, Redness(), tmp_path / name, task=TASK, resume=resume)
        lines = RunFolder(tmp_path / name).metrics()
        return {m["step"]: m["probe/gold"] for m in lines if "probe/gold" in m}

    return run


def test_a_run_that_starts_from_an_adapter_begins_where_that_one_ended(aligned, tmp_path):
    first = aligned("first")
    assert set(first) == {0, 3}
    assert abs(first[3] - first[0]) > 1e-3
    second = aligned("second", adapter=str(tmp_path / "first"))
    assert second[0] == pytest.approx(first[3], abs=1e-6)
    assert second[3] != pytest.approx(second[0], abs=1e-4)
    settings = json.loads((tmp_path / "second" / "adapter" / "adapter.json").read_text())
    assert settings == json.loads((tmp_path / "first" / "adapter" / "adapter.json").read_text())


def test_a_finished_alignment_is_not_made_longer(aligned, tmp_path):
    before = aligned("run")
    key = re.escape(f"{tmp_path / 'run'}: was made with another configuration (loop.num_steps); ")
    with pytest.raises(RunError, match=key + ".*another --out and --adapter " + re.escape(str(tmp_path / "run"))):
        aligned("run", resume=True, num_steps=5)
    assert aligned("run", resume=True) == before


def test_cut_prompts_are_counted_once_before_the_first_step(aligned, tmp_path, capsys, caplog):
    """And transformers does not warn of "indexing errors", which there are none of."""
    aligned("run", max_sequence_length=77)
    said = capsys.readouterr().err
    line = (
        "1 of 3 prompts are longer than the text encoders read, and are cut "
        "(a T5 reads max_sequence_length tokens, here 77)"
    )
    assert said.count("are longer than") == said.count(line) == 1
    assert said.index(line) < said.index("before the first step")
    assert "indexing errors" not in said + caplog.text


def test_sampling_counts_cut_prompts_too(pipeline_folder, generator, tmp_path, capsys):
    sampling = Sampling(str(pipeline_folder), num_steps=1)
    sample_to_folder(["a dog", LONG], tmp_path, sampling, num=1)
    assert capsys.readouterr().err.count("1 of 2 prompts are longer than") == 1
    warn_of_cut_prompts(generator, ["a dog"], 256)
    assert capsys.readouterr().err == ""


@pytest.fixture
def align_run(quick_align, tmp_path):
    """A folder as an alignment leaves it."""
    RunFolder(tmp_path / "refl").start("align", quick_align("tiny"))
    (tmp_path / "refl" / "adapter").mkdir()
    return tmp_path / "refl"


def test_an_alignment_is_no_judge(align_run, capsys):
    with pytest.raises(RunError) as caught:
        load_judge(align_run)
    line = f"{align_run}: an alignment run, which holds an adapter of a generator, not a judge"
    assert str(caught.value) == line
    flags = ["--judge", str(align_run), "--out", str(align_run.parent / "out")]
    assert main(["align", *flags]) == 1
    assert capsys.readouterr().err == f"rewarddance: {line}\n"


def test_an_unfinished_training_is_no_judge_yet(vlm_folder, data_folder, quick, tmp_path):
    config = reward_config(vlm_folder, data_folder, quick, num_steps=3, max_seconds=1e-9)
    with pytest.raises(RunError, match="out of time"):
        train_from_data(config, tmp_path / "run")
    with pytest.raises(RunError, match=f"{tmp_path / 'run'}: this judge run has no model yet; resume it$"):
        load_judge(tmp_path / "run")


def test_a_wrong_task_or_file_of_prompts_is_said_before_a_judge_is_loaded(quick_align, tmp_path, monkeypatch, capsys):
    def too_early(*args, **settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rewarddance.jobs.align.load_judge", too_early)
    out = ["--out", str(tmp_path / "run")]
    for flags, line in [
        (
            ["--task", "embeded"],
            "task 'embeded': known are embedded, embedded-video, embedded-image-to-video, "
            "or package.module:attribute of your own",
        ),
        (["--task", "no_such_package:Task"], "task 'no_such_package:Task': No module named 'no_such_package'"),
        (["--prompts", "none.txt"], "none.txt: no such file of prompts"),
    ]:
        assert main(["align", *flags, *out]) == 1
        assert capsys.readouterr().err == f"rewarddance: {line}\n"
    (tmp_path / "prompts.txt").write_text("a dog\n")
    config = quick_align("tiny", prompts=str(tmp_path / "prompts.txt"), prompts_sha256="0" * 64)
    with pytest.raises(Exception, match="has changed since the run was made"):
        align_from_names(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_judge_is_the_gold_standard_of_any_task(pipeline_folder, quick_align, tmp_path):
    """The embedded task keeps its prompts and gets the judge's verdict in place of the oracle's."""
    config = quick_align("tiny", gold_judge="tiny").model_copy(update={"loop": LoopConfig(num_steps=0)})
    align_from_names(config, tmp_path / "run")
    probe = RunFolder(tmp_path / "run").metrics()[0]
    assert probe["probe/gold"] == pytest.approx(probe["probe/proxy"], abs=1e-5)
