"""Two real processes compute what one computes."""

import json
import subprocess
import sys

import pytest
import torch

from rewarddance.core import parallel

PROGRAM = """
import json, sys, torch
from rewarddance.core import parallel
from rewarddance.core.parallel import (
    all_reduce_gradients, all_gather_dicts, is_leader, process_group, rank, fail_together, barrier, world_size
)
with process_group():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 2), torch.arange(12.0).reshape(4, 3)
    mine = x[rank() :: world_size()]
    model(mine).square().sum().backward()
    if rank() == 1:
        model.bias.grad = None
    parallel.BUCKET_SIZE = 1  # every gradient in a message of its own
    all_reduce_gradients(model.parameters())
    barrier()

    def work():
        if rank() == 1:
            raise KeyError("mine")
        return 1

    try:
        fail_together(work, KeyError)
        raised = None
    except KeyError as error:
        raised = str(error)
    raised = all_gather_dicts({rank(): raised})
    if is_leader():
        open(sys.argv[1], "w").write(json.dumps([world_size(), model.weight.grad.tolist(), raised]))
"""


def test_gradients_of_two_processes_add_up_and_errors_are_everyones(tmp_path):
    program, result = tmp_path / "program.py", tmp_path / "result.json"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(program), str(result)], check=True, timeout=300)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model(torch.arange(12.0).reshape(4, 3)).square().sum().backward()
    size, grad, raised = json.loads(result.read_text())
    assert size == 2
    assert raised == {"0": "'another process could not go on'", "1": "'mine'"}
    torch.testing.assert_close(torch.tensor(grad), model.weight.grad)


def test_one_process_alone_is_the_leader_of_one():
    assert (parallel.rank(), parallel.world_size(), parallel.is_leader()) == (0, 1, True)
    values = torch.ones(2)
    assert parallel.all_reduce_sum(values).tolist() == pytest.approx([1, 1])
