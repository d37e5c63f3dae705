"""Runs of the command line that are killed (SIGKILL) and resumed, or repeated, give the metrics of an unbroken run."""

import random
import signal
import subprocess
import sys
import time

import pytest
from processes import ended, started

from rewarddance.apps.cli import main
from rewarddance.core.disk import list_checkpoints
from rewarddance.core.runs import RunFolder

CLI = [sys.executable, "-m", "rewarddance"]


def trajectory(folder, keys):
    rows = RunFolder(folder).metrics()
    return {k: [m[k] for m in rows if k in m] for k in keys}


def run(*command):
    """A command that is not killed, in the process of the tests."""
    assert main([str(part) for part in command]) == 0


def run_with_kills(out, *command, kills=1):
    """Kill a command at a random step, some moments after it is logged, `kills` times; then let it end."""
    seed = random.randrange(10_000)
    log, dice = out / "metrics.jsonl", random.Random(seed)
    print(f"kills drawn with seed {seed}")  # shown where the test fails

    def steps():
        return len(log.read_text().splitlines()) if log.exists() else 0

    done, resume = 0, []
    while done < kills:
        process = started(None, *command, *resume, log=out.with_suffix(".log"))
        until = steps() + dice.randint(1, 4)
        while process.exitcode is None and steps() < until:
            time.sleep(0.02)
        time.sleep(dice.random() * 0.5)
        if process.exitcode is not None:
            break
        if ended(process) != -signal.SIGKILL:
            break
        done, resume = done + 1, ["--resume"]
    assert done > 0
    run(*command, "--resume")


@pytest.fixture(scope="module")
def judge_flags(vlm_folder, data_folder):
    flags = ["train", "--backbone", vlm_folder, "--data", data_folder, "--prompts-per-step", 4, "--precision", "fp32"]
    flags += [
        "--optim.lr",
        2e-2,
        "--optim.warmup-steps",
        2,
        "--optim.ema-decay",
        0.5,
    ]  # fast, so that it answers yes or no
    return [*flags, "--loop.num-steps", 12, "--loop.save-every", 1, "--loop.validate-every", 6]


@pytest.fixture(scope="module")
def whole_judge(judge_flags, tmp_path_factory):
    out = tmp_path_factory.mktemp("judges") / "whole"
    run(*judge_flags, "--out", out)
    return out


JUDGE_KEYS = ("step", "loss", "grad_norm", "accuracy", "id/accuracy")


def same(a, b, keys):
    found, wanted = trajectory(a, keys), trajectory(b, keys)
    for key in keys:
        assert wanted[key], key
        assert found[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-7), key


def test_a_killed_judge_training_resumes_to_the_same_metrics(judge_flags, whole_judge, tmp_path):
    run_with_kills(tmp_path / "killed", *judge_flags, "--out", tmp_path / "killed")
    same(tmp_path / "killed", whole_judge, JUDGE_KEYS)


@pytest.mark.slow
def test_ctrl_c_in_a_judge_training_saves_and_resumes_to_the_same_metrics(judge_flags, whole_judge, tmp_path):
    flags, out = list(judge_flags), tmp_path / "stopped"
    flags[flags.index("--loop.save-every") + 1] = 100
    command = [*CLI, *map(str, flags), "--out", str(out)]
    own = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # also where the tests ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **own)
    while process.poll() is None and len(RunFolder(out).metrics()) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    steps = [m["step"] for m in RunFolder(out).metrics()]
    assert process.returncode == 130, errors
    assert f"{out}: told to stop at step {steps[-1]} of 12; resume goes on from there (--resume)" in errors
    assert list_checkpoints(out / "checkpoints") == steps[-1:]
    run(*flags, "--out", out, "--resume")
    same(out, whole_judge, JUDGE_KEYS)


def test_rerun_repeats_a_run(whole_judge, tmp_path):
    run("rerun", whole_judge, "--out", tmp_path / "again")
    same(tmp_path / "again", whole_judge, JUDGE_KEYS)


@pytest.mark.slow
def test_a_killed_refl_run_resumes_to_the_same_metrics(pipeline_folder, whole_judge, tmp_path):
    flags = ["align", "--generator", pipeline_folder, "--judge", whole_judge, "--precision", "fp32"]
    flags += ["--num-prompts", 4, "--batch-size", 2, "--lora-rank", 2, "--probe-prompts", 2]
    flags += ["--references.num-candidates", 2, "--references.refresh", "steps", "--references.every", 3]
    flags += ["--refl.num-steps", 4, "--loop.num-steps", 8, "--loop.save-every", 1, "--loop.validate-every", 4]
    run(*flags, "--out", tmp_path / "whole")
    run_with_kills(tmp_path / "killed", *flags, "--out", tmp_path / "killed")
    keys = ("step", "loss", "reward", "kl", "grad_norm", "probe/proxy", "references_from")
    same(tmp_path / "killed", tmp_path / "whole", keys)
