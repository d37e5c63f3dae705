"""The supervised control: plain flow matching without guidance, shared out over processes that may be uneven."""

import pytest
import torch

from rewarddance.align import supervised
from rewarddance.align.config import AlignConfig
from rewarddance.align.guidance import without_guidance
from rewarddance.align.supervised import SupervisedRun
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import seed_of
from rewarddance.world.task import EmbeddedTask

BATCH = 5


@pytest.fixture
def student(generator):
    generator.add_lora(2, 4.0)
    torch.manual_seed(0)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    return generator


class Watched:
    """The embedded task; remembers what it was asked for."""

    def __init__(self):
        self.calls = []

    def supervised_batch(self, seed, name, index, size):
        self.calls.append((index, size))
        return EmbeddedTask().supervised_batch(seed, name, index, size)


def run_of(generator, folder, task=None):
    config = AlignConfig(algorithm="sft", batch_size=BATCH, seed=3)
    loop = Loop(generator.trainable(), config.optim, LoopConfig(num_steps=1), RunFolder(folder))
    return SupervisedRun(config, generator, loop, task or EmbeddedTask())


def flow_matching_loss(generator, place, size):
    """Mean squared error of the unguided velocity at logit-normal times, written out."""
    prompts, pixels = EmbeddedTask().supervised_batch(3, "sft-control", place, size)
    rng = torch.Generator().manual_seed(seed_of(3, "sft-noise", place))
    with torch.no_grad():
        x = generator.encode(pixels)
    t = torch.sigmoid(torch.randn(size, generator=rng))
    noise = torch.randn(x.shape, generator=rng)
    z = (1 - t.view(-1, 1, 1, 1)) * x + t.view(-1, 1, 1, 1) * noise
    embeds, pooled = generator._embed(prompts)
    v = generator._forward(z, t * 1000, embeds, pooled)
    return (v - (noise - x)).square().mean()


def gradients(generator):
    return [p.grad.clone() for p in generator.transformer.parameters() if p.requires_grad]


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_the_loss_is_plain_flow_matching_whatever_the_guidance(guidance, student, tmp_path):
    student.guidance = guidance
    metrics = run_of(student, tmp_path).step(2)
    found = gradients(student)
    student.transformer.zero_grad()
    loss = flow_matching_loss(student, 2, BATCH)
    loss.backward()
    assert metrics == {"loss": pytest.approx(loss.item(), rel=1e-5)}
    for a, b in zip(found, gradients(student), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)
    assert student.guidance == guidance


def test_the_guidance_comes_back_after_an_error(student):
    student.guidance = 4.5

    def broken():
        with without_guidance(student):
            assert student.guidance == 1.0
            raise KeyError("lost")

    with pytest.raises(KeyError):
        broken()
    assert student.guidance == 4.5
    assert student.condition(["a red circle"]).empty_embeds is not None
    with without_guidance(student):
        assert student.condition(["a red circle"]).empty_embeds is None


def test_uneven_processes_make_the_gradient_of_the_mean_over_the_whole_batch(student, tmp_path, monkeypatch):
    """Five pictures for two processes: three and two. The gradients of all processes are summed."""
    summed, shares = None, []
    for rank in range(2):
        monkeypatch.setattr(supervised, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(supervised, "world_size", lambda: 2)
        task = Watched()
        run_of(student, tmp_path, task).step(4)
        shares += task.calls
        own = gradients(student)
        summed = own if summed is None else [a + b for a, b in zip(summed, own, strict=True)]
        student.transformer.zero_grad()
    assert shares == [(8, 3), (9, 2)]
    whole = (3 * flow_matching_loss(student, 8, 3) + 2 * flow_matching_loss(student, 9, 2)) / BATCH
    whole.backward()
    for a, b in zip(summed, gradients(student), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)
