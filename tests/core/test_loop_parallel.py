"""A stopped run of two processes continues with the random numbers of each process. It also stops if only one
process is out of time or gets a signal."""

import pytest
from processes import run_processes

from rewarddance.core.runs import RunFolder

PROGRAM = """
import signal, sys
from pathlib import Path
import torch
from rewarddance.core.config import Config
from rewarddance.core.errors import RunError, StoppedError
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import all_reduce_gradients, all_reduce_sum, barrier, is_leader, process_group, rank
from rewarddance.core.runs import RunFolder

collectives, all_reduce = [], torch.distributed.all_reduce

def counted(*args, **kwargs):
    collectives.append(args)
    return all_reduce(*args, **kwargs)

torch.distributed.all_reduce = counted

def fit(folder, press=None, **changes):
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
        if index == press and rank() == 1:
            signal.raise_signal(signal.SIGINT)
        return {"loss": all_reduce_sum(loss.detach()).item()}

    return loop.run(step)

with process_group():
    whole, parts = Path(sys.argv[1]), Path(sys.argv[2])
    fit(whole)
    assert len(collectives) == 6 * (2 + 1) + 1, len(collectives)  # a step has two of its own; and one at the end
    for late in range(2):  # only one process is out of time, and only the other one wants to save
        try:
            fit(parts, max_seconds=1e-9 if rank() == late else None, save_seconds=1e9 if rank() == late else 1e-9)
            raise SystemExit("was to stop")
        except RunError as error:
            assert "out of time" in str(error), error
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        fit(parts, press=3)
        raise SystemExit("was to stop")
    except StoppedError as error:  # in both processes, though only one got the signal
        assert "told to stop at step 4 of 6" in str(error), error
        assert error.signal == signal.SIGINT
    fit(parts)
"""


def test_a_run_of_two_processes_resumes_the_random_numbers_of_each(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run_processes(2, program, tmp_path / "whole", tmp_path / "parts")
    whole, parts = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("whole", "parts"))
    assert len(whole) == 6
    assert parts == pytest.approx(whole, rel=1e-6)
