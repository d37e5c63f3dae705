import itertools
import signal

import pytest
import torch
from torch import nn

from rewarddance.core.checkpoint import load_optimizer, optimizer_tensors
from rewarddance.core.config import Config
from rewarddance.core.disk import list_checkpoints
from rewarddance.core.errors import RunError, StoppedError
from rewarddance.core.loop import Loop, build_optimizers, learning_rate, trainable
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder


def fit(folder, optim, num_steps=20, stop=None, validate=None, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    run = RunFolder(folder)
    run.start("test", Config(), resume=True)
    loop = Loop({"m": model}, optim, LoopConfig(num_steps=num_steps, save_every=5, **changes), run)
    loop.resume()

    def step(index):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(index))
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        loss.backward()
        return {"loss": loss.item()}

    return loop, loop.run(step, validate, stop=stop)


@pytest.mark.parametrize(
    "optim", [OptimConfig(lr=1e-2), OptimConfig(lr=1e-2, name="muon", ema_decay=0.9, weight_decay=0.1)]
)
def test_parts_equal_the_whole_for_every_optimizer(optim, tmp_path):
    fit(tmp_path / "whole", optim)
    for _ in range(4):
        with pytest.raises(RunError, match="out of time at step"):
            fit(tmp_path / "parts", optim, max_seconds=1e-9)
    _, outcome = fit(tmp_path / "parts", optim)
    assert outcome == "finished"
    a, b = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("whole", "parts"))
    assert a == pytest.approx(b, rel=1e-6)


@pytest.fixture
def own_ctrl_c():
    """Python's handler of Ctrl-C, also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_first_and_goes_on_later(number, own_ctrl_c, tmp_path):
    optim = OptimConfig(lr=1e-2)
    fit(tmp_path / "whole", optim)
    step = itertools.count(1)
    with pytest.raises(StoppedError, match="told to stop at step 7 of 20; resume goes on from there") as stopped:
        fit(tmp_path / "parts", optim, stop=lambda m: signal.raise_signal(number) if next(step) == 7 else None)
    assert stopped.value.signal == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert list_checkpoints(tmp_path / "parts" / "checkpoints") == [5, 7]
    fit(tmp_path / "parts", optim)
    a, b = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("whole", "parts"))
    assert a == pytest.approx(b, rel=1e-6)


def test_the_second_ctrl_c_ends_inside_a_step(own_ctrl_c, tmp_path, capfd):
    def press(metrics):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, OptimConfig(), stop=press)
    assert "another Ctrl-C ends at once" in capfd.readouterr().err
    assert not list_checkpoints(tmp_path / "checkpoints")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, outcome = fit(tmp_path, OptimConfig(), stop=lambda m: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome == "finished"


def test_a_signal_in_the_last_step_is_not_forgotten(tmp_path):
    """After the signal, a study must not start its next run."""
    step = itertools.count(1)
    with pytest.raises(StoppedError, match="told to stop at step 20 of 20"):
        fit(tmp_path, OptimConfig(), stop=lambda m: signal.raise_signal(signal.SIGTERM) if next(step) == 20 else None)
    assert fit(tmp_path, OptimConfig())[1] == "finished"


def test_a_step_that_is_validated_is_logged(tmp_path):
    fit(tmp_path, OptimConfig(), validate=lambda step: {"val": 10.0 * step}, log_every=4, validate_every=7)
    lines = RunFolder(tmp_path).metrics()
    assert {m["step"]: m.get("val") for m in lines} == {4: None, 7: 70, 8: None, 12: None, 14: 140, 16: None, 20: 200}


def test_a_stop_reason_ends_and_is_logged(tmp_path):
    _, outcome = fit(tmp_path, OptimConfig(lr=1e-2), stop=lambda m: "enough" if m["loss"] < 1e9 else None)
    assert outcome == "stopped"
    last = RunFolder(tmp_path).metrics()[-1]
    assert last["stopped"] == "enough"
    loop, outcome = fit(tmp_path, OptimConfig(lr=1e-2), stop=lambda m: None)  # resumed, it has ended still
    assert (outcome, loop.step) == ("stopped", last["step"])
    assert RunFolder(tmp_path).metrics()[-1] == last


def test_a_checkpoint_goes_on_with_the_kernels_of_where_it_is_loaded():
    def one(fused):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        return model, optimizer

    def step(model, optimizer, i):
        model(torch.ones(4, 3) * i).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    ends = []
    for first, second in ((None, None), (None, True), (True, None)):
        model, optimizer = one(first)
        step(model, optimizer, 1)
        tensors, groups = optimizer_tensors(optimizer)
        fresh, other = one(second)
        fresh.load_state_dict(model.state_dict())
        load_optimizer(other, {k: v.clone() for k, v in tensors.items()}, groups)
        assert [bool(g["fused"]) for g in other.param_groups] == [bool(second)]
        step(fresh, other, 2)
        ends.append(fresh.weight.detach().clone())
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    assert torch.allclose(ends[0], ends[2], atol=1e-6)


def test_an_optimizer_of_other_parameters_is_refused():
    small, large = (torch.optim.AdamW(nn.Linear(n, 2).parameters(), lr=0.1) for n in (3, 4))
    for p in small.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    small.step()
    with pytest.raises(RunError, match="trained other parameters"):
        load_optimizer(large, *optimizer_tensors(small))


def test_a_gradient_that_is_not_a_number_stops_the_run(tmp_path):
    model = nn.Linear(2, 1)
    run = RunFolder(tmp_path)
    run.start("test", Config())
    loop = Loop({"m": model}, OptimConfig(), LoopConfig(num_steps=3), run)

    def step(index):
        (model(torch.ones(1, 2)).sum() * float("nan")).backward()
        return {"loss": float("nan")}

    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RunError, match="step 0: the gradient is nan"):
        loop.run(step)
    loop.context = "records a, b"
    with pytest.raises(RunError, match=r"step 0 \(records a, b\): the gradient is nan"):
        loop.run(step)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_schedules():
    cosine = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(cosine, 0, 100) == pytest.approx(0.1, rel=0.01)
    assert learning_rate(cosine, 100, 100) == pytest.approx(0.1)
    late = OptimConfig(lr=1.0, schedule="linear_end")
    assert learning_rate(late, 79, 100) == 1
    assert learning_rate(late, 90, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_is_put_in_place_and_taken_out_and_stays_what_it_is(dtype, tmp_path):
    model = nn.Linear(2, 1).to(dtype)
    run = RunFolder(tmp_path)
    loop = Loop({"m": model}, OptimConfig(ema_decay=0.5), LoopConfig(), run)
    begun = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    live = model.weight.detach().clone()
    loop.ema.update(loop.parameters, 100)
    average = {k: v.clone() for k, v in loop.ema.shadow.items()}
    with loop.averaged():
        assert torch.allclose(model.weight.float(), (begun.float() + live.float()) / 2, rtol=1e-2)
        assert not torch.equal(model.weight, live)
    assert torch.equal(model.weight, live)
    assert all(torch.equal(v, loop.ema.shadow[k]) for k, v in average.items())


def test_muon_takes_hidden_matrices_only():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "hidden": nn.Linear(2, 2), "head": nn.Linear(2, 4)})
    adam, muon = build_optimizers(trainable({"m": model}), OptimConfig(name="muon"))
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [(2, 2)]
    assert sum(len(g["params"]) for g in adam.param_groups) == 4


def test_matrices_decay_and_gains_of_any_shape_do_not():
    """One step of AdamW without any gradient multiplies by 1 - lr * weight_decay (Loshchilov and Hutter 2019)."""
    model = nn.Linear(3, 2)
    model.head = nn.Linear(3, 1, bias=False)
    model.gain = nn.Parameter(torch.ones(4, 1, 1))
    model.table = nn.Parameter(torch.ones(1, 6, 4))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in build_optimizers(dict(model.named_parameters()), OptimConfig(lr=0.1, weight_decay=0.5)):
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * 0.95)
    torch.testing.assert_close(model.head.weight.detach(), before["head.weight"] * 0.95)  # a matrix of one row
    for name in ("bias", "gain", "table"):
        torch.testing.assert_close(getattr(model, name).detach(), before[name])


def test_a_parameter_with_a_rate_factor_learns_that_much_faster(tmp_path):
    """The first step of AdamW moves every parameter by the learning rate."""
    model = torch.nn.Linear(2, 1)
    model.scale = torch.nn.Parameter(torch.zeros(1))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optim = OptimConfig(lr=1e-3, weight_decay=0.5)
    loop = Loop({"m": model}, optim, LoopConfig(num_steps=2), RunFolder(tmp_path), {"m.scale": 50.0, "m.none": 2.0})
    for again in (False, True):
        if again:  # the factor stays after a return to earlier weights
            loop.go_back({f"m.{k}": v for k, v in before.items()}, 0.5)
        (model(torch.ones(1, 2)) + model.scale).sum().backward()
        loop.update()
        rate = 5e-4 if again else 1e-3
        assert model.bias.item() - before["bias"].item() == pytest.approx(-rate, rel=1e-3)
        assert model.scale.item() == pytest.approx(-50 * rate, rel=1e-3)
