"""Stand-ins for the shipped models of clips: random weights under their names."""

import shutil
from collections import Counter

from tiny_wan import tiny_wan

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.runs import write_json
from rewarddance.reward.config import JudgeSpec
from rewarddance.world.motion import task as motion_task


def write_clip_assets(folder, vlm_folder):
    """`tiny` (VLM), `tiny-clips` (judge) and `tiny-video` (generator) in a folder of assets."""
    shutil.copytree(vlm_folder, folder / "vlm-tiny")
    judge = shutil.copytree(vlm_folder, folder / "judge-tiny-clips")
    spec = JudgeSpec(
        paradigm="generative_pointwise",
        trained=True,
        kinds=("clip",),
        criteria=("overall",),
        clips=ClipFrames(fps=4.0),
    )
    (judge / "judge.json").write_text(spec.model_dump_json())
    tiny_wan().pipeline.save_pretrained(folder / "generator-tiny-video")
    shape = {"num_frames": 9, "fps": 8.0, "side": 48, "max_sequence_length": 24}
    write_json(folder / "generator-tiny-video" / "clip.json", shape)
    return folder


def count_verdicts(monkeypatch):
    """How often the motion oracle judges each clip from now on, by prompt and pixels."""
    counts, judgement = Counter(), motion_task._judgement

    def counted(prompt, clip):
        counts[prompt.text, clip.key] += 1
        return judgement(prompt, clip)

    monkeypatch.setattr(motion_task, "_judgement", counted)
    return counts
