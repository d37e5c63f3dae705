"""ReFL on two real processes: one log, the same weights in both, references and figures that all of them share."""

import json
import subprocess
import sys

import pytest

from rewarddance.core.runs import RunFolder

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import process_group, rank
from rewarddance.core.types import Verdict
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator

torch.set_num_threads(1)

class Redness:
    def judge(self, comparisons):
        def red(media):
            return media.frames[:, 0].mean() - media.frames[:, 1:].mean()
        return Verdict.from_margin(8 * torch.stack([red(c.candidate) - red(c.reference) for c in comparisons]))

pipeline, out, algorithm = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = AlignConfig(
    algorithm=algorithm, precision="fp32", num_prompts=6, batch_size=4, lora_rank=2, probe_prompts=1,
    references=ReferenceConfig(num_candidates=2), refl=ReflConfig(num_steps=4), optim=OptimConfig(lr=2e-3),
    loop=LoopConfig(num_steps=3, validate_every=3),
)
with process_group():
    generator = Sd3Generator.load(pipeline)
    align_generator(config, generator, Redness(), out)
    weights = [float(p.double().sum()) for p in generator.transformer.parameters() if p.requires_grad]
    (out / f"weights-{rank()}.json").write_text(json.dumps(weights))
"""


@pytest.mark.parametrize("algorithm", ["refl", pytest.param("sft", marks=pytest.mark.slow)])
def test_two_processes_train_one_generator(algorithm, pipeline_folder, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "run"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*command, str(program), str(pipeline_folder), str(out), algorithm], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    first, second = (json.loads((out / f"weights-{r}.json").read_text()) for r in (0, 1))
    assert first == second
    assert any(first)
    steps = [m["step"] for m in RunFolder(out).metrics()]
    assert steps == ([0, 1, 2, 3] if algorithm == "refl" else [1, 2, 3])
    assert (out / "adapter" / "adapter.safetensors").is_file()
