"""Two real processes, and a judge that refuses what one of them has: both go on, and the other one's gradient stays."""

import json

import pytest
import torch
from processes import run_processes
from safetensors.torch import load_file

from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.runs import RunFolder
from rewarddance.data.parquet import RecordTable, row_of, write_rows
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.reward.training import training_batch
from rewarddance.vlm.registry import load_backbone_folder

TRAIN = """
import sys
from pathlib import Path
import torch
from rewarddance.core.parallel import process_group
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.registry import load_backbone_folder

torch.set_num_threads(1)
vlm, data, out, config = sys.argv[1:]
with process_group():
    config = RewardConfig.model_validate_json(config)
    train_judge(config, load_backbone_folder(vlm, torch.float32), RecordTable.open(Path(data)), {}, Path(out))
"""


def records():
    """Four records; the prompt of the last one is too long to be asked about."""
    rng, made = torch.Generator().manual_seed(0), []
    for i in range(4):
        media = tuple(Media((torch.rand(1, 3, 48, 48, generator=rng) * 255).round() / 255) for _ in range(2))
        prompt = f"prompt {i}" + " a red circle" * 800 * (i == 3)
        made.append(PreferenceRecord(f"r{i}", prompt, media, (Choice(0, 1, float(i % 2)),), "fidelity"))
    return made


def settings(folder, **changes):
    return RewardConfig(
        backbone=str(folder),
        prompts_per_step=2,
        temperature=1.0,
        precision="fp32",
        optim=OptimConfig(lr=1e-3),
        loop=LoopConfig(num_steps=4),
        **changes,
    )


def test_the_record_that_is_refused_is_all_that_one_process_has(vlm_folder):
    """Each process has one record a step, so in two steps of four one process has no question."""
    bad = [[r.record_id for r in training_batch(records(), settings(vlm_folder), i)] for i in range(4)]
    assert sum("r3" in batch for batch in bad) == 2
    assert all(len(batch) == 2 for batch in bad)


@pytest.mark.parametrize("shard", [1, 2])
def test_training_goes_on_where_one_process_has_no_question(shard, vlm_folder, tmp_path):
    write_rows((row_of(r) for r in records()), tmp_path / "train.parquet")
    table = RecordTable.open(tmp_path / "train.parquet")
    train_judge(settings(vlm_folder), load_backbone_folder(vlm_folder, torch.float32), table, {}, tmp_path / "one")
    program = tmp_path / "program.py"
    program.write_text(TRAIN)
    config = settings(vlm_folder, shard=shard).model_dump_json()
    run_processes(2, program, vlm_folder, tmp_path / "train.parquet", tmp_path / "two", config)
    one, two = (RunFolder(tmp_path / n).metrics() for n in ("one", "two"))
    assert len(one) == len(two) == 4
    assert sorted(m.get("num_left_out", 0) for m in two) == [0, 0, 2, 2]  # both orders of the pair
    for name in ("loss", "grad_norm", "accuracy"):
        assert [m[name] for m in two] == pytest.approx([m[name] for m in one], rel=1e-3, abs=1e-5), name
    assert all(m["grad_norm"] > 0 for m in two)
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=2e-5, msg=name)


REFL = """
import json, sys
from pathlib import Path
import torch
from rewarddance.align import refl_run
from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import all_gather_dicts, process_group, rank
from rewarddance.core.types import Verdict
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator

torch.set_num_threads(1)
pipeline, out = Path(sys.argv[1]), Path(sys.argv[2])
steps, all_reduce = [], refl_run.all_reduce_gradients

class Redness:
    '''Refuses all that process 1 asks in the second step of training.'''
    def judge(self, comparisons):
        def red(media):
            return torch.zeros(()) if media is None else media.frames[:, 0].mean() - media.frames[:, 1:].mean()
        verdict = Verdict.from_margin(8 * torch.stack([red(c.candidate) - red(c.reference) for c in comparisons]))
        if rank() == 1 and len(steps) == 1 and verdict.margin.requires_grad:
            return verdict.refuse({i: "unclear" for i in range(len(comparisons))})
        return verdict

def watched(parameters):
    '''The gradients of both processes before they are summed, and the sum after.'''
    chosen = list(parameters)
    flat = lambda: torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in chosen]).clone()
    own = all_gather_dicts({rank(): flat()})
    all_reduce(chosen)
    error = float((flat() - own[0] - own[1]).abs().max())
    steps.append({"own": [float(own[r].norm()) for r in (0, 1)], "sum": float(flat().norm()), "error": error})

refl_run.all_reduce_gradients = watched
config = AlignConfig(
    algorithm="refl", precision="fp32", num_prompts=6, batch_size=4, lora_rank=2, probe_prompts=1,
    references=ReferenceConfig(num_candidates=2), refl=ReflConfig(num_steps=4, kl_weight=0.0),
    optim=OptimConfig(lr=2e-3), loop=LoopConfig(num_steps=3, validate_every=3),
)
with process_group():
    generator = Sd3Generator.load(pipeline)
    align_generator(config, generator, Redness(), out)
    weights = [float(p.detach().double().sum()) for p in generator.transformer.parameters() if p.requires_grad]
    (out / f"rank-{rank()}.json").write_text(json.dumps({"steps": steps, "weights": weights}))
"""


def test_reward_feedback_goes_on_where_one_process_is_refused(pipeline_folder, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "run"
    program.write_text(REFL)
    run_processes(2, program, pipeline_folder, out)
    first, second = (json.loads((out / f"rank-{r}.json").read_text()) for r in range(2))
    assert first == second
    for step, given in enumerate(first["steps"]):
        assert given["own"][0] > 0
        assert (given["own"][1] == 0) == (step == 1)
        assert given["error"] < 1e-7
    kept = first["steps"][1]
    assert kept["sum"] == pytest.approx(kept["own"][0], rel=1e-6)
    lines = [m for m in RunFolder(out).metrics() if m["step"]]
    assert [m.get("refused", 0) for m in lines] == [0, 2, 0]
    assert all(0 < m["reward"] < 1 and m["grad_norm"] > 0 for m in lines)
