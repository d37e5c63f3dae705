"""Muon against torch's own and against the polar factor."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel

from rewarddance.core.config import Config
from rewarddance.core.errors import StoppedError
from rewarddance.core.loop import Loop, build_optimizers, trainable
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.muon import Muon, orthogonalise
from rewarddance.core.runs import RunFolder
from rewarddance.vlm.tuning import add_lora


def test_it_makes_the_update_of_torchs_muon():
    torch.manual_seed(0)
    starts = [torch.randn(12, 20), torch.randn(20, 12), torch.randn(12, 20)]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in starts] for _ in range(2))
    a = Muon(ours, lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn_like(x)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for x, y, w in zip(ours, theirs, starts, strict=True):
        moved = (x - w).detach().abs().max().item()
        assert (x - y).detach().abs().max().item() < 0.03 * moved  # torch computes it in bf16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix_of_its_output_channels(memory_format):
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    kernel = torch.nn.Parameter(start.clone().contiguous(memory_format=memory_format))
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = gradient.contiguous(memory_format=memory_format), gradient.flatten(1)
    for parameter in (kernel, matrix):
        Muon([parameter], lr=0.02, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), atol=1e-7, rtol=1e-5)


def test_muon_takes_the_kernels_of_hidden_layers_and_no_gains():
    names = {"encoder.conv_in.weight": 5, "mid.conv1.weight": 5, "mid.conv1.bias": 1, "decoder.conv_out.weight": 5}
    parameters = {name: torch.nn.Parameter(torch.randn([2] * ndim)) for name, ndim in names.items()}
    parameters |= {"mid.gamma": torch.nn.Parameter(torch.ones(8, 1, 1, 1))}  # a gain
    parameters |= {"scale_shift_table": torch.nn.Parameter(torch.zeros(1, 6, 8))}
    adamw, muon = build_optimizers(parameters, OptimConfig(name="muon"))
    assert [p is parameters["mid.conv1.weight"] for g in muon.param_groups for p in g["params"]] == [True]
    assert sum(len(g["params"]) for g in adamw.param_groups) == 5


def test_singular_values_come_close_to_one_along_the_same_directions():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 40)
    y = orthogonalise(x)
    assert torch.linalg.svdvals(y).min() > 0.6
    assert torch.linalg.svdvals(y).max() < 1.25
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(y.flatten(1), (u @ v).flatten(1))
    assert cosine.min().item() == pytest.approx(1, abs=0.05)


def test_adapters_alone_are_trained_by_muon_and_resumed(tmp_path):
    """All trained parameters are matrices, so no parameter is left for AdamW."""

    def fit(folder, **changes):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
        config = LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False)
        tuned = LoraModel(model, {"default": config}, "default")
        run = RunFolder(folder)
        run.start("test", Config(), resume=True)
        optim = OptimConfig(name="muon", lr=0.02, ema_decay=0.9)
        loop = Loop({"m": tuned}, optim, LoopConfig(num_steps=6, save_every=3, **changes), run)
        assert [type(o).__name__ for o in loop.optimizers] == ["Muon"]
        assert all("lora_" in name for name in loop.parameters)
        loop.resume()

        def step(index):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(index))
            loss = (tuned(x) - x.roll(1, 1)).square().mean()
            loss.backward()
            return {"loss": loss.item()}

        before = {k: p.detach().clone() for k, p in loop.parameters.items()}
        loop.run(step)
        return before, loop

    before, loop = fit(tmp_path / "whole")
    for name, p in loop.parameters.items():
        assert (p - before[name]).norm() > 0.01, name
    for _ in range(2):
        with pytest.raises(StoppedError):
            fit(tmp_path / "parts", max_seconds=1e-9)
    _, again = fit(tmp_path / "parts")
    for name, p in loop.parameters.items():
        torch.testing.assert_close(again.parameters[name], p, rtol=1e-5, atol=1e-6)


def test_a_vlms_adapters_are_hidden_matrices(backbone):
    add_lora(backbone, 2, 4.0)
    parameters = trainable({"vlm": backbone.module})
    (muon,) = build_optimizers(parameters, OptimConfig(name="muon"))
    assert isinstance(muon, Muon)
    assert sum(len(g["params"]) for g in muon.param_groups) == len(parameters) > 0


def test_a_generators_adapters_are_hidden_matrices(generator):
    generator.add_lora(2, 4.0)
    parameters = trainable(generator.trainable())
    (muon,) = build_optimizers(parameters, OptimConfig(name="muon"))
    assert sum(len(g["params"]) for g in muon.param_groups) == len(parameters) > 0
