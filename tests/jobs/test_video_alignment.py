"""Alignment of the tiny Wan: clips reach the judge with gradient, banks are files of clips, and runs can go on."""

from dataclasses import replace

import pytest
import torch
from small_runs import same, trajectory
from tiny_wan import RedClips, tiny_wan

from rewarddance.align.config import AlignConfig
from rewarddance.align.probes import Prober
from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.task import Drawn
from rewarddance.core.types import Comparison, Verdict
from rewarddance.jobs.align import _keep_references, align_generator
from rewarddance.reward.composite import Composite, Standard
from rewarddance.reward.config import JudgeSpec
from rewarddance.reward.judge import new_judge
from rewarddance.reward.parts import JudgePart


class KilledError(Exception):
    pass


def configured(task, algorithm="refl", num_steps=3, **changes):
    return AlignConfig(
        task=task,
        algorithm=algorithm,
        precision="fp32",
        num_prompts=3,
        batch_size=2,
        sample_batch=4,
        lora_rank=2,
        probe_prompts=2,
        references={"num_candidates": 2, "refresh": "steps", "every": 2},
        refl={"num_steps": 2, "window": (0.5, 1.0)},
        rollout={"num_steps": 3, "group_size": 2, "score": "round_robin"},
        grpo={"noisy_steps": 1, "window": (0.0, 0.67)},
        optim=OptimConfig(lr=5e-3, warmup_steps=1, ema_decay=0.5),
        loop=LoopConfig(num_steps=num_steps, validate_every=num_steps, save_every=2),
        **changes,
    )


@pytest.mark.parametrize("task", ["embedded-video", "embedded-image-to-video"])
def test_refl_learns_from_a_judge_of_clips(tmp_path, task):
    from_picture, judge = task.endswith("image-to-video"), RedClips()
    align_generator(configured(task), tiny_wan(from_picture), judge, tmp_path / "run")
    found = trajectory(tmp_path / "run", "loss", "grad_norm", "kl", "probe/gold", "probe/dynamics")
    assert found["kl"][0] == 0
    assert found["kl"][-1] > 0
    assert min(found["grad_norm"]) > 0
    assert len(found["probe/gold"]) == len(found["probe/dynamics"]) == 2
    shapes = {c.candidate.frames.shape for c in judge.asked}
    assert shapes == {(9, 3, 48, 48), (8, 3, 48, 48)}  # probes also ask about clips without their first frame
    assert {(c.candidate.fps, c.reference.fps) for c in judge.asked} == {(8.0, 8.0)}
    assert {c.condition is not None for c in judge.asked} == {from_picture}
    assert any(c.candidate.frames.requires_grad for c in judge.asked)
    files = {f.name: f.stat().st_size for f in (tmp_path / "run" / "clips").iterdir()}
    clip = 9 * 3 * 48 * 48
    assert files["references-000002.bytes"] == 3 * clip
    assert files["probe_references.bytes"] == 4 * clip


def test_a_resumed_run_repeats_the_unbroken_one_with_its_bank_on_disk(tmp_path):
    config = configured("embedded-image-to-video", num_steps=4)
    align_generator(config, tiny_wan(True), RedClips(), tmp_path / "whole")

    def kill(step, total, metrics):
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        align_generator(config, tiny_wan(True), RedClips(), tmp_path / "broken", on_step=kill)
    align_generator(config, tiny_wan(True), RedClips(), tmp_path / "broken", resume=True)
    keys = ("loss", "kl", "probe/proxy", "probe/gold", "probe/drift_brightness")
    same(trajectory(tmp_path / "broken", *keys), trajectory(tmp_path / "whole", *keys), rel=1e-6, abs=1e-9)


def test_flicker_in_frames_that_the_judge_does_not_see_is_noticed(tmp_path, monkeypatch):
    class EverySecond:
        def judge(self, comparisons):
            red = [[float(m.frames.detach()[::2, 0].mean()) for m in (c.candidate, c.reference)] for c in comparisons]
            return Verdict.from_margin(20 * (torch.tensor(red)[:, 0] - torch.tensor(red)[:, 1]))

    generator = tiny_wan()
    generator.add_lora(2, 2.0)
    prober = Prober(generator, EverySecond(), ["a", "b"], 2, 2, "overall", 0, None, folder=tmp_path)
    start, draw = prober.probe(0), prober._draw
    assert abs(start["probe/unseen_gap"]) < 0.05

    def hacked(prompts, rows):
        clips = [replace(m, frames=m.frames.clone()) for m in draw(prompts, rows)]
        for clip in clips:
            clip.frames[::2, 0] = 1.0
        return clips

    monkeypatch.setattr(prober, "_draw", hacked)
    end = prober.probe(1)
    assert end["probe/proxy"] > 0.95
    assert end["probe/unseen_gap"] > 0.4  # for the judge, the other frames have not changed
    assert end["probe/flicker"] > start["probe/flicker"] + 0.1


@pytest.mark.parametrize("algorithm", ["nft", "grpo", "dpo", "distill", "sft"])
def test_the_other_algorithms_run_on_clips(tmp_path, algorithm):
    judge = None if algorithm == "sft" else RedClips()
    config = configured("embedded-image-to-video", algorithm, num_steps=2)
    align_generator(config, tiny_wan(True), judge, tmp_path / "run")
    losses = trajectory(tmp_path / "run", "loss")["loss"]
    assert len(losses) == 2
    assert torch.tensor(losses).isfinite().all()
    assert judge is None or all(c.condition is not None for c in judge.asked)


@pytest.mark.parametrize("algorithm", ["refl", "nft"])
def test_both_experts_are_trained_and_a_resumed_run_repeats_the_unbroken_one(tmp_path, algorithm):
    """Two steps of a rollout are at times 1 and 0.75, one for each expert."""
    config = configured("embedded-video", algorithm, num_steps=4, micro_batch=1 if algorithm == "refl" else 2)
    rollout = config.rollout.model_copy(update={"times": (0.78, 0.97)})  # NFT's two times, one for each expert
    config = config.model_copy(
        update={"refl": config.refl.model_copy(update={"window": (0.0, 1.0)}), "rollout": rollout}
    )
    align_generator(config, tiny_wan(experts=True), RedClips(), tmp_path / "whole")

    def kill(step, total, metrics):
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        align_generator(config, tiny_wan(experts=True), RedClips(), tmp_path / "broken", on_step=kill)
    align_generator(config, tiny_wan(experts=True), RedClips(), tmp_path / "broken", resume=True)
    keys = ("loss", "probe/proxy", "probe/gold")
    same(trajectory(tmp_path / "broken", *keys), trajectory(tmp_path / "whole", *keys), rel=1e-6, abs=1e-9)
    trained = tiny_wan(experts=True)
    trained.load_adapter(tmp_path / "whole" / "adapter")
    for name, module in trained.trainable().items():
        moved = [float(p.abs().max()) for n, p in module.named_parameters() if "lora_B" in n]  # they begin at 0
        assert len(moved) == 8
        assert min(moved) > 0, name


def test_a_generator_that_cannot_do_the_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="this generator is text-to-video; take --task embedded-video"):
        align_generator(configured("embedded-image-to-video"), tiny_wan(), RedClips(), tmp_path / "run")


@torch.no_grad()
def test_a_judge_keeps_the_images_of_all_references(backbone):
    """Three clips of 9 frames at 8 a second: the judge looks at 5 frames of each."""
    backbone.module.requires_grad_(False)
    backbone.sample_clips(ClipFrames(fps=4))
    judge, config = new_judge(JudgeSpec(paradigm="generative_pairwise"), backbone), configured("embedded-video")
    clips = Drawn(48, 9, 8.0)
    _keep_references(config, judge, clips, 3)
    assert judge.engine.image_cache == 15

    references = [Media(x, 8.0) for x in torch.rand(3, 9, 3, 48, 48, generator=torch.Generator().manual_seed(9))]
    encoded = []
    for a, b in ((0, 1), (1, 2), (2, 0), (0, 1)):
        judge.judge([Comparison("a red circle", references[a], references[b], "fidelity")])
        encoded.append(judge.engine.counts.images)
    assert encoded == [10, 5, 0, 0]
    _keep_references(config, judge, Drawn(48, 9, 8.0, from_picture=True), 3)
    assert judge.engine.image_cache == 18
    _keep_references(config, judge, Drawn(48), 3)
    assert judge.engine.image_cache == 3
    _keep_references(configured("embedded-video", "nft"), judge, clips, 3)  # a round robin has no references
    assert judge.engine.image_cache == 0
    parts = {"one": JudgePart(judge)}
    _keep_references(config, Composite(parts, {"one": Standard(0.0, 1.0, 1.0)}, {"one": 1.0}), clips, 3)
    assert judge.engine.image_cache == 15
