"""The next step's data is made while this step runs, once, in order, and errors come where they belong."""

import threading

import pytest
import torch

from rewarddance.core.prefetch import Feed, Prefetch, num_workers


def test_next_index_is_made_meanwhile_and_nothing_beyond_the_end():
    made, second = [], threading.Event()

    def make(index):
        made.append((index, threading.current_thread() is threading.main_thread()))
        if index == 1:
            second.set()
        return index * 10

    with Prefetch(make, 3) as ahead:
        assert ahead(0) == 0
        assert second.wait(10)  # without having asked for it
        assert [ahead(1), ahead(2)] == [10, 20]
    assert made == [(0, True), (1, False), (2, False)]


def test_any_order_gives_what_was_asked_for():
    with Prefetch(lambda index: index * 10, 100) as ahead:
        assert [ahead(i) for i in (4, 5, 5, 2, 3, 99, 0)] == [40, 50, 50, 20, 30, 990, 0]


def test_an_error_belongs_to_its_own_index():
    def make(index):
        if index == 1:
            raise ValueError("one")
        return index

    with Prefetch(make, 3) as ahead:
        assert ahead(0) == 0
        with pytest.raises(ValueError, match="one"):
            ahead(1)
        assert ahead(2) == 2


def test_a_feed_makes_each_batch_once_and_begins_anywhere():
    made = []

    def make(index):
        made.append(index)
        return index * 10

    with Feed(make, 5) as feed:
        assert [feed(i) for i in (2, 3, 4)] == [20, 30, 40]
        assert made == [2, 3, 4]
        assert feed(0) == 0  # a training that goes back
        assert feed(7) == 70  # beyond the end


def test_workers_stand_beside_an_accelerator_only(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert [num_workers(None, d) for d in (cpu, gpu)] == [0, 14]
    assert num_workers(3, cpu) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_workers(None, gpu) == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert num_workers(None, gpu) == 0
