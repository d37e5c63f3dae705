"""How long collectives wait: minutes, but hours at the one barrier where the leader builds data."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from rewarddance.core import parallel


@pytest.fixture
def single_process(monkeypatch):
    """The environment that `torchrun` gives to a process that is alone."""
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)


def timeout_of(group):
    return group._get_backend(torch.device("cpu")).options._timeout


def test_collectives_wait_minutes_and_the_long_barrier_hours():
    assert timedelta(minutes=5) <= parallel.TIMEOUT <= timedelta(hours=1)
    assert timedelta(hours=4) <= parallel.LONG_TIMEOUT <= timedelta(days=1)


def test_the_groups_have_these_timeouts(single_process):
    with parallel.process_group():
        assert timeout_of(dist.group.WORLD) == parallel.TIMEOUT
        assert timeout_of(parallel._patient_group) == parallel.LONG_TIMEOUT
    assert parallel._patient_group is None
    assert not dist.is_initialized()


def test_only_the_long_barrier_uses_the_patient_group(single_process, monkeypatch):
    groups = []
    with parallel.process_group():
        monkeypatch.setattr(parallel, "world_size", lambda: 2)
        monkeypatch.setattr(dist, "barrier", lambda group=None: groups.append(group))
        parallel.barrier()
        parallel.long_barrier()
        assert groups == [None, parallel._patient_group]
        assert groups[1] is not None


def test_a_process_without_torchrun_has_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with parallel.process_group():
        assert not dist.is_initialized()
        parallel.barrier()
        parallel.long_barrier()
