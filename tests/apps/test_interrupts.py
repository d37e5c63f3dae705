"""Ctrl-C (SIGINT) and SIGTERM in real processes: the exit status, the line that is printed, and what is saved."""

import signal
import subprocess
import sys

import pytest

from rewarddance.core.disk import list_checkpoints
from rewarddance.core.runs import RunFolder

PROGRAM = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn
from rewarddance.apps import cli
from rewarddance.core.config import Config
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder

out, seconds = Path(sys.argv[1]), float(sys.argv[2])

class Steps:
    read = staticmethod(lambda program, rest: Steps())

    def run(self):
        run = RunFolder(out)
        run.start("test", Config(), resume=True)
        model = nn.Linear(2, 2)
        loop = Loop({"m": model}, OptimConfig(), LoopConfig(num_steps=10_000, save_every=10_000), run)
        if seconds == 0:
            print("ready", flush=True)
            time.sleep(60)

        def step(index):
            print("ready", flush=True)
            time.sleep(seconds)
            model(torch.ones(1, 2)).sum().backward()
            return {}

        loop.run(step)

cli.COMMANDS["train"] = SimpleNamespace(load=lambda: Steps)
sys.exit(cli.main(["train"]))
"""


@pytest.fixture
def started(tmp_path):
    """Starts the command `train` with steps of the given seconds. With 0 seconds it never reaches a step."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    processes = []

    def start(seconds):
        command = [sys.executable, str(program), str(tmp_path / "run"), str(seconds)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also where the tests ignore it
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_finishes_the_step_and_saves_it(number, status, started, tmp_path):
    process = started(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    run = RunFolder(tmp_path / "run")
    assert [m["step"] for m in run.metrics()] == [1] == list_checkpoints(run.checkpoints)
    lines = errors.strip().splitlines()
    assert lines[-1] == (
        f"rewarddance: {run.path}: told to stop at step 1 of 10000; resume goes on from there (--resume)"
    )
    assert ("another Ctrl-C ends at once" in lines[0]) == (number == signal.SIGINT)


def test_the_second_ctrl_c_ends_at_once(started, tmp_path):
    process = started(60)
    process.send_signal(signal.SIGINT)
    assert "another Ctrl-C ends at once" in process.stderr.readline() + process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130
    assert errors.strip() == "rewarddance: interrupted; --resume goes on from the last checkpoint"
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_ctrl_c_outside_a_training_loop_ends_at_once(started):
    process = started(0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert (process.returncode, errors.strip()) == (
        130,
        "rewarddance: interrupted; --resume goes on from the last checkpoint",
    )
