"""Two real processes compute what one computes."""

import json
import subprocess
import sys

import pytest
import torch
from processes import run_processes

from rewarddance.core import parallel

PROGRAM = """
import json, sys, torch
from rewarddance.core import parallel
from rewarddance.core.parallel import (
    all_reduce_gradients, is_leader, process_group, rank, barrier, world_size
)
with process_group():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 2), torch.arange(12.0).reshape(4, 3)
    own = x[rank() :: world_size()]
    model(own).square().sum().backward()
    if rank() == 1:
        model.bias.grad = None
    parallel.BUCKET_SIZE = 1  # every gradient in a message of its own
    all_reduce_gradients(model.parameters())
    barrier()
    if is_leader():
        open(sys.argv[1], "w").write(json.dumps([world_size(), model.weight.grad.tolist()]))
"""


def by_torchrun(num, program, *args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
    ended = subprocess.run([*command, str(program), *map(str, args)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def test_gradients_of_two_processes_by_torchrun_add_up(tmp_path):
    program, result = tmp_path / "program.py", tmp_path / "result.json"
    program.write_text(PROGRAM)
    by_torchrun(2, program, result)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model(torch.arange(12.0).reshape(4, 3)).square().sum().backward()
    size, grad = json.loads(result.read_text())
    assert size == 2
    torch.testing.assert_close(torch.tensor(grad), model.weight.grad)


LARGEST = """
from rewarddance.core.parallel import all_reduce_each_max, all_reduce_max, process_group, rank
with process_group():
    assert all_reduce_each_max(15 * rank(), 1 - rank(), 0) == (15, 1, 0)
    assert all_reduce_max(-3 - rank()) == -3
"""


def test_the_largest_numbers_of_two_processes_are_found_one_by_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(LARGEST)
    run_processes(2, program)


def test_one_process_alone_is_the_leader_of_one():
    assert (parallel.rank(), parallel.world_size(), parallel.is_leader()) == (0, 1, True)
    values = torch.ones(2)
    assert parallel.all_reduce_sum(values).tolist() == pytest.approx([1, 1])
    assert parallel.all_reduce_each_max(4, 2) == (4, 2)
    assert parallel.all_reduce_max(4) == 4
