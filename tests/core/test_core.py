import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field

from rewarddance.core import config
from rewarddance.core.checkpoint import load_checkpoint, save_checkpoint
from rewarddance.core.config import Config, differing_keys, merge, parse_config
from rewarddance.core.disk import list_checkpoints
from rewarddance.core.errors import ConfigError, InputError, RunError
from rewarddance.core.media import Media
from rewarddance.core.monitors import HackingMonitor, StuckLoss
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.statistics import (
    bootstrap,
    paired_bootstrap,
    students_interval,
    two_way_bootstrap,
)
from rewarddance.core.types import Comparison, Verdict


class Inner(Config):
    learning_rate: float = Field(1.0, gt=0)


class Outer(Config):
    optim: Inner = Inner()
    seed: int = 0


def test_a_typing_error_names_the_nearest_field():
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml: unknown key 'optim\.learning_rat'; did you mean 'learning_rate'"
    ):
        parse_config(Outer, {"optim": {"learning_rat": 2}}, "recipe.yaml")


def test_a_wrong_value_is_named():
    with pytest.raises(ConfigError, match=r"optim\.learning_rate: .*greater than 0 \(got -1\)"):
        parse_config(Outer, {"optim": {"learning_rate": -1}})


def test_merge_puts_leaves_on_top():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}


def test_checkpoint_round_trip_keeps_the_newest(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"model/w": torch.full((2,), float(step))}, {"note": step}, keep=2)
    assert list_checkpoints(tmp_path) == [2, 3]
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.part("model")["w"].tolist() == [3, 3]
    assert checkpoint.state["note"] == 3


def test_half_a_checkpoint_is_not_one(tmp_path):
    save_checkpoint(tmp_path, 1, {"model/w": torch.zeros(1)}, {})
    (tmp_path / ".step_2.partial").mkdir()
    (tmp_path / "step_9").mkdir()
    assert list_checkpoints(tmp_path) == [1]


def test_a_broken_checkpoint_says_which(tmp_path):
    folder = save_checkpoint(tmp_path, 1, {"model/w": torch.zeros(1)}, {})
    (folder / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="step_1: unreadable"):
        load_checkpoint(tmp_path)


class Rate(Config):
    lr: float = 1.0
    warmup_steps: int = 3


class Steps(Config):
    max_seconds: float | None = None
    num_steps: int = 5


class Settings(Config):
    micro_batch: int = 0
    smoothing: float = 0.0
    optim: Rate = Rate()
    loop: Steps = Steps()


def test_run_folder_refuses_another_configuration(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start("judge", Settings())
    with pytest.raises(RunError, match="--resume"):
        run.start("judge", Settings())
    run.start("judge", Settings(), resume=True)
    with pytest.raises(RunError, match="another configuration \\(smoothing\\)"):
        run.start("judge", Settings(smoothing=0.1), resume=True)
    with pytest.raises(RunError, match="kind 'judge', not 'align'"):
        run.start("align", Settings(), resume=True)


def test_a_resumption_may_set_anew_what_error_messages_advise(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start("judge", Settings())
    changed = Settings(micro_batch=2, optim=Rate(lr=0.5))
    for _ in range(2):
        run.start("judge", changed, resume=True)
    content = run.read()
    assert content["config"] == changed.model_dump(mode="json")
    assert [b["config"] for b in content["before"]] == [Settings().model_dump(mode="json")]
    for key, wrong in (("optim.warmup_steps", Rate(lr=0.5, warmup_steps=4)), ("loop.num_steps", Steps(num_steps=6))):
        with pytest.raises(RunError, match=f"another configuration \\({key}\\)$"):
            run.start("judge", changed.model_copy(update={key.split(".")[0]: wrong}), resume=True)
    run.must_be("judge", changed.model_copy(update={"micro_batch": 1}))
    with pytest.raises(RunError, match=r"another configuration \(optim\.lr\)"):  # a finished run keeps its rate
        run.must_be("judge", changed.model_copy(update={"optim": Rate()}))


def test_a_run_from_before_a_key_existed_goes_on_with_its_default(tmp_path):
    old = Settings().model_dump(mode="json", exclude={"smoothing"}) | {"optim": {"lr": 1.0}}
    assert differing_keys(old, Settings()) == []
    assert differing_keys(old, Settings(smoothing=0.1)) == ["smoothing"]
    assert differing_keys(old | {"gone": 1}, Settings()) == ["gone", "optim.warmup_steps", "smoothing"]
    write_json(tmp_path / "run.json", {"kind": "judge", "config": old})
    RunFolder(tmp_path).start("judge", Settings(), resume=True)
    assert RunFolder(tmp_path).read()["config"] == Settings().model_dump(mode="json")


def test_metrics_after_a_kill_are_cut_back(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"loss": 1 / step, "bad": float("nan")})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    run.forget_after(2)
    assert [m["step"] for m in run.metrics()] == [1, 2]
    assert run.metrics()[0]["bad"] is None


def test_bootstrap_covers_the_mean_and_pairs_help():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, (200, 4))
    after = before + 0.1 + rng.normal(0, 0.05, before.shape)
    interval = paired_bootstrap(after, before)
    assert interval.ci_low < 0.1 < interval.ci_high
    assert interval.verdict == "better"
    assert bootstrap(before).verdict == "inconclusive"
    with pytest.raises(ValueError, match="NaN"):
        bootstrap([1.0, float("nan")])


def test_bootstrap_interval_has_the_textbook_width():
    x = np.random.default_rng(1).normal(0, 1, 400)
    interval = bootstrap(x, num=4000)
    assert interval.ci_high - interval.ci_low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


def test_two_way_bootstrap_knows_that_seeds_differ():
    rng = np.random.default_rng(2)
    prompts, seeds = rng.normal(0, 0.1, (200, 1)), np.array([-0.5, 0.0, 0.5])
    alike = two_way_bootstrap(prompts + np.zeros(3))
    differ = two_way_bootstrap(prompts + seeds)
    assert alike.mean == pytest.approx(differ.mean)
    assert alike.ci_high - alike.ci_low == pytest.approx(2 * 1.96 * 0.1 / 200**0.5, rel=0.2)
    # the mean of three draws from three seeds has standard deviation sqrt(2 / 3) / 2 / sqrt(3)
    assert differ.ci_high - differ.ci_low > 0.8
    with pytest.raises(ValueError, match="NaN"):
        two_way_bootstrap(np.full((2, 2), np.nan))


def test_hacking_is_called_when_proxy_rises_and_gold_falls():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (40, 2))
    honest, hacked = HackingMonitor(), HackingMonitor()
    for step, (gold, fallen) in enumerate([(0.4, 0.4), (0.5, 0.5), (0.6, 0.3)]):
        sound = honest.add(step, 0.5 + 0.1 * step + noise, gold + noise)
        metrics = hacked.add(step, 0.5 + 0.1 * step + noise, fallen + noise)
    assert sound["probe/hacking"] == "none"
    assert metrics["probe/hacking"] == "hacking"


def test_a_few_runs_have_students_interval_and_a_single_one_has_none():
    interval = students_interval([0.038, 0.048, 0.061])
    assert (interval["ci_low"], interval["ci_high"]) == pytest.approx((0.020, 0.078), abs=1e-3)
    assert students_interval([0.5]) == {"mean": 0.5, "ci_low": None, "ci_high": None}


def test_verdict_keeps_reward_and_margin_together():
    margin = torch.linspace(-40, 40, 9)
    verdict = Verdict.from_margin(margin)
    assert torch.allclose(verdict.margin, margin, atol=1e-5)
    assert torch.allclose(verdict.reward, torch.sigmoid(margin))


def test_swapping_turns_the_label_round():
    a, b = Media(torch.zeros(1, 3, 4, 4)), Media(torch.ones(1, 3, 4, 4))
    c = Comparison("p", a, b, label=0.9).swapped()
    assert c.candidate is b
    assert c.label == pytest.approx(0.1)
    with pytest.raises(ValueError, match="pointwise"):
        Comparison("p", a).swapped()


def test_media_layouts_agree(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "a.png")
    opened = Media.open(tmp_path / "a.png")
    assert opened.size == (5, 7)
    assert np.array_equal(opened.to_numpy(), x)
    assert opened.key == Media.from_numpy(x).key == Media.from_pil(Image.fromarray(x)).key


def test_media_keeps_gradients_and_identity():
    x = torch.rand(3, 4, 4, requires_grad=True)
    media = Media.from_tensor(x)
    media.frames.sum().backward()
    assert x.grad is not None
    assert media.key != Media.from_tensor(x).key


def test_transparency_is_laid_on_white():
    assert Media.from_pil(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).frames.min() == 1


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (torch.zeros(4, 4), "shape"),
        (torch.full((3, 4, 4), 2.0), r"\[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), "nan"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "float"),
    ],
)
def test_bad_tensors_are_refused(bad, match):
    with pytest.raises(InputError, match=match):
        Media.from_tensor(bad)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name, match in (
        ("a.png", "not a picture"),
        ("cut.png", "truncated|unreadable"),
        ("none.png", "no such file"),
    ):
        with pytest.raises(InputError, match=match):
            Media.open(tmp_path / name)


def test_a_picture_of_20_000_pixels_a_side_is_over_the_limit(tmp_path):
    def part(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = part(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(InputError, match=r"huge.png: over the limit of 64,000,000 pixels"):
        Media.open(tmp_path / "huge.png")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr("rewarddance.core.media.MAX_PIXELS", 9_999)
    with pytest.raises(InputError, match="over the limit"):
        Media.open(tmp_path / "big.png")


def test_run_json_names_versions(tmp_path):
    RunFolder(tmp_path).start("judge", Settings())
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["packages"]["torch"]
    assert content["hardware"]["cores"] >= 1


def test_a_loss_stuck_at_a_coins_is_said_once():
    stuck, learning = StuckLoss(), StuckLoss()
    said = [w for i in range(1, 301) if (w := stuck.note(i, 0.693 + 0.02 * (i % 2) - 0.01))]
    assert len(said) == 1
    assert "coin" in said[0]
    assert not any(learning.note(i, 0.69 - 0.001 * i) for i in range(1, 301))
    # a coin costs more where ties are modelled, or answers share their probability with other words
    other = StuckLoss()
    assert sum(other.note(i, 1.79, coin=1.79) is not None for i in range(1, 301)) == 1


def test_everything_public_is_there():
    import rewarddance

    assert all(getattr(rewarddance, name).__name__ == name for name in rewarddance.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rewarddance.nothing  # noqa: B018


def test_recipes_come_from_the_working_folder_or_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "package" / "core" / "config.py"))
    monkeypatch.chdir(tmp_path)
    shipped, own = tmp_path / "package" / "recipes" / "a.yaml", tmp_path / "recipes" / "a.yaml"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("seed: 1")
    assert config.load_recipe("recipes/a.yaml") == {"seed": 1}
    own.parent.mkdir()
    own.write_text("seed: 2")
    assert config.load_recipe("recipes/a.yaml") == {"seed": 2}
    with pytest.raises(ConfigError, match=r"recipes/b\.yaml: cannot read"):
        config.load_recipe("recipes/b.yaml")
