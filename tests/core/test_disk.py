"""A disk that is full: one line with the cause and the last whole checkpoint, and nothing half-written stays."""

from types import SimpleNamespace

import pytest
from processes import started

from rewarddance.apps import cli
from rewarddance.core.disk import is_full, kept, list_checkpoints
from rewarddance.core.errors import RunError
from rewarddance.core.mapped import map_bytes
from rewarddance.core.runs import RunFolder

PROGRAM = """
import resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from rewarddance.core.checkpoint import save_checkpoint
from rewarddance.core.config import Config
from rewarddance.core.errors import RunError
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.mapped import map_bytes
from rewarddance.core.runs import RunFolder, write_json

what, out = sys.argv[1], Path(sys.argv[2])
run = RunFolder(out)
run.start("test", Config(), resume=True)
torch.manual_seed(0)
model = nn.Linear(300, 300)
loop = Loop({"m": model}, OptimConfig(), LoopConfig(num_steps=8, save_every=2), run)
loop.resume()

def full():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

def step(index):
    if index == 5 and what == "checkpoint":
        full()
    model(torch.ones(1, 300) * index).square().mean().backward()
    return {"note": index * 1.0}

def log():
    for i in range(9, 999):
        run.log(i, {"loss": 0.5})

def train():
    loop.run(step)

jobs = [train]
if what == "files":
    write_json(out / "facts.json", ["before"])
    full()
    jobs = [log, lambda: write_json(out / "facts.json", ["x" * 9000])]
    jobs.append(lambda: map_bytes(out / "clips.bin", (9000,), new=True))
failed = False
for job in jobs:
    try:
        job()
    except RunError as error:
        print(error)
        failed = True
sys.exit(failed)
"""


@pytest.fixture
def on_a_full_disk(tmp_path):
    """Runs a part of the program with a limit of 4 KiB a file, which fails as a full disk does; returns its line."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(what, status=1):
        process = started(program, what, tmp_path / "run", log=tmp_path / "out.txt", errors=tmp_path / "errors.txt")
        process.join()
        assert process.exitcode == status, (tmp_path / "errors.txt").read_text()
        lines = (tmp_path / "out.txt").read_text()
        (tmp_path / "out.txt").unlink()
        return lines.strip()

    return start


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_and_resume_ends_the_run(on_a_full_disk, tmp_path):
    run = tmp_path / "run"
    line = on_a_full_disk("checkpoint")
    folder = run / "checkpoints"
    assert line == (
        f"{folder / 'step_6'}: cannot be written (File too large); free some space; {run} keeps its checkpoint of step "
        "4, and a resumed run goes on from there"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["step_2", "step_4"]
    assert on_a_full_disk("whole", status=0) == ""
    assert [m["note"] for m in RunFolder(run).metrics()] == list(range(8))
    assert list_checkpoints(folder) == [6, 8]


def test_metrics_json_and_clips_that_do_not_fit_are_one_line(on_a_full_disk, tmp_path):
    run = tmp_path / "run"
    log, facts, clips = on_a_full_disk("files").splitlines()
    assert log.startswith(f"{run / 'metrics.jsonl'}: cannot be written (File too large); free some space; {run} has no")
    steps = [m["step"] for m in RunFolder(run).metrics()]
    assert len(steps) > 50
    assert steps == list(range(9, 9 + len(steps)))  # without the line that was cut short
    assert facts == f"{run / 'facts.json'}: cannot be written (File too large); free some space"
    assert (run / "facts.json").read_text() == '[\n  "before"\n]\n'
    assert clips.startswith(f"{run / 'clips.bin'}: cannot be written (File too large)")
    assert not list(run.glob(".*"))


def test_a_file_of_clips_without_room_is_removed(monkeypatch, tmp_path):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fails, raising=False)
    with pytest.raises(RunError, match="cannot be written"):
        map_bytes(tmp_path / "clips.bin", (4, 100), new=True)
    assert not list(tmp_path.iterdir())  # one of the full size would pass for a whole file


def test_which_errors_are_a_full_disk():
    assert is_full(OSError(28, "No space left on device"))
    assert is_full(Exception("No space left on device (os error 28)"))  # as tokenizers raises it
    assert not is_full(OSError(13, "Permission denied"))
    assert not is_full(ValueError("28"))


def test_what_is_kept(tmp_path):
    assert kept(tmp_path / "run" / "checkpoints").endswith("has no checkpoint yet, and a resumed run begins again")
    (tmp_path / "run" / "checkpoints" / "step_3").mkdir(parents=True)
    assert "no checkpoint" in kept(tmp_path / "run" / "checkpoints")  # without state.json it is not whole


def test_any_other_file_that_does_not_fit_is_one_line_with_a_hint(monkeypatch, capsys):
    def fails(program, rest):
        raise OSError(28, "No space left on device", "samples/step-000020.png")

    command = SimpleNamespace(load=lambda: SimpleNamespace(read=fails))
    for name, hint in (("align", "--resume"), ("study search", "the same command again")):
        monkeypatch.setitem(cli.COMMANDS, name, command)
        assert cli.main(name.split()) == 1
        line = capsys.readouterr().err
        assert f"No space left on device: 'samples/step-000020.png'; free some space and resume ({hint}) (" in line
        assert line.count("\n") == 1
