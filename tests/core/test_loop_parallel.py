"""A stopped run of two real processes goes on with the random numbers of each."""

import subprocess
import sys

import pytest

from rewarddance.core.runs import RunFolder

PROGRAM = """
import sys
from pathlib import Path
import torch
from rewarddance.core.config import Config
from rewarddance.core.errors import RunError
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import all_reduce_gradients, all_reduce_sum, barrier, is_leader, process_group, rank
from rewarddance.core.runs import RunFolder

def fit(folder, **changes):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    run = RunFolder(folder)
    if is_leader():
        run.start("test", Config(), resume=True)
    barrier()
    loop = Loop({"m": model}, OptimConfig(lr=1e-2), LoopConfig(num_steps=6, save_every=2, **changes), run)
    if not loop.resume():
        torch.manual_seed(2**40 + rank())

    def step(index):
        loss = (model(torch.randn(8, 4)) - 1).square().mean()  # other numbers in every process and step
        loss.backward()
        all_reduce_gradients(model.parameters())
        return {"loss": all_reduce_sum(loss.detach()).item()}

    return loop.run(step)

with process_group():
    whole, parts = Path(sys.argv[1]), Path(sys.argv[2])
    fit(whole)
    for _ in range(2):
        try:
            fit(parts, max_seconds=1e-9)
            raise SystemExit("was to stop")
        except RunError as error:
            assert "out of time" in str(error), error
    fit(parts)
"""


def test_a_run_of_two_processes_resumes_the_random_numbers_of_each(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*command, str(program), str(tmp_path / "whole"), str(tmp_path / "parts")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    whole, parts = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("whole", "parts"))
    assert len(whole) == 6
    assert parts == pytest.approx(whole, rel=1e-6)
