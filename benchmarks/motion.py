"""The moving world's oracle in figures: scores of clean, mismatched and damaged clips, and clips a second.

python benchmarks/motion.py [--clips 300]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable

import numpy as np

from rewarddance.core.streams import stream
from rewarddance.world.motion.benchmark import action_set
from rewarddance.world.motion.corrupt import DAMAGES, EDITS, damage, edit_scene
from rewarddance.world.motion.oracle import CRITERIA, MotionJudgement, judge
from rewarddance.world.motion.raters import alignment
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import sample_pair
from rewarddance.world.motion.scene import FPS, MotionScene
from rewarddance.world.raters import crowd

STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def _rate(work: Callable[[], object], num: int) -> float:
    """Times a second, from the processor time of the best of three rounds."""
    rounds = []
    for _ in range(3):
        began = time.process_time()
        work()
        rounds.append(time.process_time() - began)
    return num / min(rounds)


def _row(name: str, judgements: list[MotionJudgement]) -> None:
    present = [c for c in CRITERIA if judgements[0].first_frame is not None or c != "first_frame"]
    print(f"{name:24s}", *(f"{np.mean([j[c] for j in judgements]):10.3f}" for c in present), f"{len(judgements):6d}")


def _edited(scenes: Iterable[MotionScene], edit: str, rng: np.random.Generator) -> list[Clip | None]:
    clips: list[Clip | None] = []
    for scene in scenes:
        try:
            clips.append(render(edit_scene(scene, rng, edit)))  # type: ignore[arg-type]
        except RuntimeError:  # this edit cannot be made to this scene
            clips.append(None)
    return clips


def main(num: int) -> None:
    rng = stream(0, "benchmark-motion")
    pairs = [sample_pair(rng) for _ in range(num)]
    specs, clips = [s for s, _ in pairs], [render(scene) for _, scene in pairs]
    judge(clips[0], specs[0], FPS)
    print("criteria:", *CRITERIA, "and clips")
    _row("clean", [judge(c, s, FPS, c[0]) for s, c in zip(specs, clips, strict=True)])
    _row("mismatched", [judge(c, specs[(i + 7) % num], FPS) for i, c in enumerate(clips)])
    moving = [(s, c) for s, c in zip(specs, clips, strict=True) if s.acts[0].action != "staying still"]
    _row("still, moving prompt", [judge(np.repeat(c[:1], len(c), 0), s, FPS) for s, c in moving])
    for kind in DAMAGES:
        for strength in STRENGTHS:
            spoilt = (damage(c, kind, strength, rng) for c in clips[: num // 3])
            _row(f"{kind} {strength:g}", [judge(c, s, FPS) for s, c in zip(specs, spoilt, strict=False)])
    for edit in EDITS:
        edited = zip(specs, _edited((scene for _, scene in pairs[: num // 3]), edit, rng), strict=False)
        _row(f"edit {edit}", [judge(c, s, FPS) for s, c in edited if c is not None])
    shown = action_set("t2v")
    mean, _ = alignment([judge(render(p.scene), p.spec, FPS).fidelity for p in shown], crowd())
    print(f"alignment of the test prompts' own clips, 0 to 2: {mean.mean:.2f} [{mean.ci_low:.2f}, {mean.ci_high:.2f}]")
    print(f"render: {_rate(lambda: [render(scene) for _, scene in pairs], num):.0f} clips a second on one thread")
    rate = _rate(lambda: [judge(c, s, FPS) for s, c in zip(specs, clips, strict=True)], num)
    print(f"oracle: {rate:.0f} clips a second on one thread")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=300)
    main(parser.parse_args().clips)
