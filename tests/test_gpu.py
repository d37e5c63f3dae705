"""On CUDA: the same answers as on the CPU, and trainings that run. `pytest -m gpu`; nothing here has seen one yet."""

import pytest
import torch

from rewarddance import Comparison, Media, load_generator, load_judge
from rewarddance.apps.cli import main
from rewarddance.core.runs import RunFolder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
PROMPT = "flat drawing of a red circle on white"


@pytest.fixture
def asked(pictures):
    return [Comparison(PROMPT, a, b, "fidelity") for a in pictures for b in pictures if a is not b]


@torch.no_grad()
def test_margins_are_those_of_the_cpu(asked):
    here, there = (load_judge("tiny", precision="fp32", device=d).judge(asked).margin.cpu() for d in ("cpu", "cuda"))
    torch.testing.assert_close(here, there, atol=2e-2, rtol=1e-3)  # a GPU may multiply in TF32
    half = load_judge("tiny", precision="bf16", device="cuda").judge(asked).margin.cpu()
    assert torch.corrcoef(torch.stack([here, half]))[0, 1] > 0.98


def test_pixels_get_a_gradient():
    judge = load_judge("tiny", device="cuda")
    pixels = torch.rand(3, 48, 48, device="cuda", requires_grad=True)
    judge.judge(
        [Comparison(PROMPT, Media.from_tensor(pixels), Media(torch.rand(1, 3, 48, 48)))]
    ).margin.sum().backward()
    assert torch.isfinite(pixels.grad).all()
    assert pixels.grad.norm() > 0


def test_the_generator_draws():
    found = load_generator("tiny", device="cuda").sample([PROMPT] * 2, num_steps=4, seed=0)
    assert len(found) == 2


def test_judge_and_generator_train_and_resume(tmp_path):
    data, judge, aligned = tmp_path / "data", tmp_path / "judge", tmp_path / "aligned"
    assert main(["data", "build", "--num-prompts", "24", "--num-held-out", "4", "--out", str(data)]) == 0
    few = ["--loop.num-steps", "2", "--loop.save-every", "1", "--out"]
    train = ["train", "recipes/tiny/reward.yaml", "--data", str(data), "--prompts-per-step", "4", *few, str(judge)]
    assert main(train) == 0
    assert main([*train, "--resume"]) == 0
    align = ["align", "recipes/tiny/refl.yaml", "--judge", str(judge), "--num-prompts", "8", "--batch-size", "4"]
    assert main([*align, "--probe-prompts", "2", *few, str(aligned)]) == 0
    for run in (judge, aligned):
        assert torch.isfinite(torch.tensor([m["loss"] for m in RunFolder(run).metrics() if "loss" in m])).all()
