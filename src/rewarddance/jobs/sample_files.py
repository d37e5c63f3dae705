"""Files of samples: pictures as PNG, clips as MP4 with a contact sheet of all of them; pairs from before and after.

The layouts of GenEval, T2I-CompBench and VBench are those that their scorers read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewarddance.core.clips import animation, contact_sheet, need_pyav, spread
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.progress import say
from rewarddance.core.runs import write_json
from rewarddance.core.task import Request, text_of
from rewarddance.evaluate.generator import Samples

SHEET = "sheet.png"
COLUMNS, ROWS, SIDE = 9, 64, 128
"""Limits of the sheet: frames of a clip, number of clips, pixels of a frame's longer side."""


Layout = Literal["plain", "geneval", "compbench", "vbench"]
PER_PROMPT: dict[Layout, int] = {"plain": 4, "geneval": 4, "compbench": 10, "vbench": 5}
"""Samples of each prompt that the scorers expect. VBench wants 25 for prompts of temporal flickering."""


def stem_of(layout: Layout, prompt: str, index: int, sample: int, num: int) -> str:
    """Where a sample lies, without its ending.

    Args:
        index: number of its prompt.
        sample: number of the sample among the `num` of its prompt.
    """
    if layout == "geneval":
        return f"{index:05d}/samples/{sample:04d}"
    if layout == "compbench":
        return f"samples/{prompt}_{index * num + sample:06d}"
    return f"{prompt}-{sample}" if layout == "vbench" else f"{index * num + sample:03d}"


def check_layout(layout: Layout, prompts: Sequence[Request], num_frames: int) -> None:
    """Check that a layout can hold the samples.

    Raises:
        ConfigError: the layout is for the other kind of samples, or it names files after prompts and a prompt cannot
            be a file name.
        InputError: clips of VBench without PyAV.
    """
    if layout == "plain":
        return
    kind, other = ("clips", "pictures") if layout == "vbench" else ("pictures", "clips")
    if (num_frames > 1) != (layout == "vbench"):
        raise ConfigError(f"sample: --layout {layout} is for {kind}, and this generator draws {other}")
    if layout == "vbench":
        need_pyav("sample --layout vbench")
    if layout == "geneval":
        return
    for prompt in map(text_of, prompts):
        wrong = [c for c in "/_\0" if c in prompt and (c != "_" or layout == "compbench")]
        if wrong or len(prompt.encode()) > 240:
            why = f"holds {wrong[0]!r}" if wrong else "is too long"
            raise ConfigError(
                f"sample: --layout {layout} names files after prompts, and this prompt {why}: {prompt[:60]}"
            )


@dataclass
class SampleFiles:
    """Writes samples into a folder, `each` of every prompt, one prompt after another.

    Without PyAV (the extra `video`) a clip becomes a contact sheet of its frames. In GenEval's layout each prompt's
    row of the file of prompts is written beside its samples (`metadata.jsonl`).
    """

    folder: Path
    each: int = 1
    layout: Layout = "plain"
    num: int = 0
    rows: list[NDArray[np.uint8]] = field(default_factory=list)
    """Frames of the clips for the sheet."""

    def write(self, media: Media, request: Request) -> str:
        """Write one sample; returns its file, relative to the folder."""
        index, sample = divmod(self.num, self.each)
        stem = self.folder / stem_of(self.layout, text_of(request), index, sample, self.each)
        self.num += 1
        stem.parent.mkdir(parents=True, exist_ok=True)
        if self.layout == "geneval" and sample == 0:
            fields = {} if isinstance(request, str) else dict(request.fields)
            (stem.parent.parent / "metadata.jsonl").write_text(json.dumps(fields | {"prompt": text_of(request)}) + "\n")
        return str(self._write(media, stem).relative_to(self.folder))

    def _write(self, media: Media, stem: Path) -> Path:
        # a prompt may hold a dot, and with_suffix would replace what follows it
        png, mp4 = (stem.with_name(stem.name + ending) for ending in (".png", ".mp4"))
        if media.num_frames == 1:
            media.save(png)
            return png
        if len(self.rows) < ROWS:
            self.rows.append(_small(media))
        if find_spec("av") is not None:
            media.save(mp4)
            return mp4
        if self.num == 1:
            say("clips are written as contact sheets, because PyAV is missing; pip install 'rewarddance[video]'")
        media.contact_sheet().save(png)
        return png

    def write_sheet(self) -> Path | None:
        """Write one picture with a row for each of the first `ROWS` clips; None without clips."""
        if not self.rows:
            return None
        contact_sheet(np.concatenate(self.rows), columns=len(self.rows[0])).save(self.folder / SHEET)
        return self.folder / SHEET


def _small(clip: Media) -> NDArray[np.uint8]:
    """Up to `COLUMNS` frames, evenly spread, each no larger than `SIDE`."""
    frames: NDArray[np.uint8] = clip.to_numpy()[spread(clip.num_frames, COLUMNS)]
    height, width = clip.size
    scale = min(1.0, SIDE / max(height, width))
    if scale == 1:
        return frames
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in frames])


def square_of(picture: Media, side: int) -> Media:
    """The middle square of a picture, scaled to `side` pixels: what an image-to-video generator begins with."""
    height, width = picture.size
    if height == width == side:
        return picture
    least = min(height, width)
    left, top = (width - least) // 2, (height - least) // 2
    square = picture.to_pil().crop((left, top, left + least, top + least))
    return Media.from_pil(square.resize((side, side), Image.Resampling.LANCZOS), origin=picture.origin)


def save_pairs(
    folder: Path,
    before: Samples,
    after: Samples,
    value_before: np.ndarray,
    value_after: np.ndarray,
    reward: np.ndarray | None = None,
    num: int = 24,
) -> None:
    """First noise of some prompts, before and after, as PNG files with a list of prompts and values (P, noises).

    Clips become contact sheets, and one animated WebP of both.

    Args:
        reward: the judge's P(after is better), (P, noises), if the values are another measure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for k in range(0, len(before.prompts), max(1, len(before.prompts) // num)):
        for name, samples in (("before", before), ("after", after)):
            media, file = samples.media[k][0], folder / f"{k:03d}_{name}.png"
            (media.to_pil() if media.num_frames == 1 else media.contact_sheet()).save(file)
        both = [s.media[k][0] for s in (before, after)]
        if (fps := both[0].fps) is not None:
            (folder / f"{k:03d}.webp").write_bytes(animation([m.to_numpy() for m in both], fps))
        entry: dict[str, Any] = {"index": k, "prompt": text_of(before.prompts[k])}
        values = {"before": value_before, "after": value_after} | ({} if reward is None else {"reward": reward})
        listed.append(entry | {n: None if np.isnan(v[k, 0]) else float(v[k, 0]) for n, v in values.items()})
    write_json(folder / "samples.json", listed)
