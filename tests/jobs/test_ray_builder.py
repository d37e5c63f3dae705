"""`data build --prompts --engine ray` on a real Ray of two CPUs: the rows of the local engine, also after a kill."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from rewarddance.apps.cli import main
from rewarddance.core.errors import RunError
from rewarddance.data.parquet import stored_rows
from rewarddance.jobs.data import pictures
from rewarddance.jobs.data.pictures import Parts, Pool, build_pictures
from rewarddance.jobs.data.ray_engine import ray_engine
from rewarddance.jobs.sample import Sampling


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors cannot import this file
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def pool(pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PART", 3)
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle, number {i}" for i in range(13)))
    return Pool(Sampling(str(pipeline_folder), sample_batch=4, precision="fp32"), 2, (1, 2), (1.0, 2.0))


def rows(folder):
    return list(stored_rows(folder / "train.parquet"))


@dataclass(frozen=True)
class Noted(Parts):
    """Parts that write down which process loads the generator and which one draws each part."""

    def _note(self, name, line):
        with (self.folder / name).open("a") as file:
            file.write(f"{line}\n")

    def load(self):
        self._note("loads.txt", os.getpid())
        return super().load()

    def draw(self, start, generator):
        self._note("draws.txt", f"{start} {os.getpid()}")
        return super().draw(start, generator)


@pytest.mark.ray
@pytest.mark.parametrize("actors", [1, 2])
def test_rows_are_those_of_the_local_engine_and_each_actor_loads_once(tmp_path, pool, cluster, monkeypatch, actors):
    build_pictures(tmp_path / "prompts.txt", tmp_path / "local", pool)
    monkeypatch.setattr(pictures, "Parts", Noted)
    out = tmp_path / "ray"
    made = build_pictures(tmp_path / "prompts.txt", out, pool, engine=ray_engine(actors))
    assert made == {"prompts": 13, "pictures": 13 * 2 * 4, "complete": True}
    assert rows(out) == rows(tmp_path / "local")
    assert (out / "pool.json").read_bytes() == (tmp_path / "local" / "pool.json").read_bytes()
    draws = [line.split() for line in (out / "draws.txt").read_text().splitlines()]
    assert sorted(int(start) for start, _ in draws) == [0, 3, 6, 9, 12]
    loads = (out / "loads.txt").read_text().split()
    assert sorted(loads) == sorted({process for _, process in draws})
    assert len(loads) <= actors
    assert str(os.getpid()) not in loads


@pytest.mark.ray
def test_slow_parts_and_more_actors_than_cpus_are_no_error(tmp_path, pool, cluster, monkeypatch):
    context = cluster.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 0.1)  # shorter than any part
    made = build_pictures(tmp_path / "prompts.txt", tmp_path / "out", pool, engine=ray_engine(4))
    assert made["complete"]


@dataclass(frozen=True)
class Broken(Parts):
    def load(self):
        raise ValueError("no such weights")


@pytest.mark.ray
def test_an_error_in_an_actor_is_one_line(tmp_path, pool, cluster, monkeypatch):
    monkeypatch.setattr(pictures, "Parts", Broken)
    with pytest.raises(RunError, match=r"^[^\n]*Ray stopped: [^\n]*no such weights; the same command continues$"):
        build_pictures(tmp_path / "prompts.txt", tmp_path / "out", pool, engine=ray_engine(1))


@pytest.mark.ray
def test_a_killed_build_continues_without_a_duplicate_or_a_gap(tmp_path, pipeline_folder):
    pytest.importorskip("ray")
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"a red circle, number {i}" for i in range(180)))  # six parts
    command = [sys.executable, "-m", "rewarddance", "data", "build", "--prompts", str(prompts), "--out", str(out)]
    command += ["--generator", str(pipeline_folder), "--images-per-prompt", "2", "--num-steps", "4"]
    command += ["--engine", "ray", "--actors", "2"]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with (tmp_path / "first.txt").open("w") as output:
        first = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while not list(out.glob(".parts/*/rows.parquet")) and first.poll() is None:
            time.sleep(0.02)
        first.kill()
    assert first.wait() == -signal.SIGKILL, (tmp_path / "first.txt").read_text()
    assert not (out / "train.parquet").exists()
    assert 1 <= len(list(out.glob(".parts/*/rows.parquet"))) < 6
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    build_pictures(prompts, tmp_path / "local", Pool(Sampling(str(pipeline_folder)), 2, (4,)))
    assert [row["id"] for row in rows(out)] == [f"prompt-{i:06d}" for i in range(180)]
    assert rows(out) == rows(tmp_path / "local")


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    (tmp_path / "prompts.txt").write_text("a red circle")
    out = str(tmp_path / "out")
    assert main(["data", "build", "--prompts", str(tmp_path / "prompts.txt"), "--out", out, "--engine", "ray"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "pip install 'rewarddance[ray]'" in lines[0]
    assert not (tmp_path / "out").exists()


def test_actors_need_the_ray_engine(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle")
    arguments = ["data", "build", "--prompts", str(tmp_path / "prompts.txt"), "--out", "x", "--actors", "2"]
    assert main(arguments) == 2
    assert "--actors needs --engine ray" in capsys.readouterr().err
