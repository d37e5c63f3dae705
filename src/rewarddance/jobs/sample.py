"""`rewarddance sample`: pictures of prompts to a folder, the judge's best of several where it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rewarddance.align.config import AlignConfig
from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.progress import progress
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.streams import seed_of
from rewarddance.generator.rollout import sample
from rewarddance.jobs.load import load_generator, load_judge
from rewarddance.search.best_of_n import Selection, select


@dataclass(frozen=True)
class Drawing:
    """A generator and how it draws.

    Attributes:
        guidance: classifier-free guidance scale; 1 is off.
        sample_batch: pictures sampled and decoded at once.
        dtype: of the generator's weights; precision: of its passes.
        resolution: side of the pictures in pixels; the checkpoint's own when None.
    """

    generator: str = "tiny"
    num_steps: int = 20
    guidance: float = 1.0
    sample_batch: int = 128
    dtype: Literal["fp32", "bf16"] = "fp32"
    resolution: int | None = None
    precision: Literal["fp32", "bf16"] = "bf16"

    @classmethod
    def of_run(cls, adapter: Path | None) -> Drawing:
        """As the generator was aligned, where `adapter` is the folder of that run or in it; the defaults otherwise."""
        for folder in () if adapter is None else (adapter, adapter.parent):
            if (folder / "run.json").is_file() and (run := RunFolder(folder).read())["kind"] == "align":
                own = AlignConfig.model_validate(run["config"])
                size = own.sample_batch, own.generator_dtype, own.resolution
                return cls(own.generator, own.refl.num_steps, own.guidance, *size, own.precision)
        return cls()


def sample_to_folder(
    prompts: Sequence[str],
    out: Path,
    drawing: Drawing,
    *,
    num: int,
    best_of: int = 1,
    adapter: Path | None = None,
    judge: str = "tiny",
    criterion: str | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Write `num` PNG files a prompt, each the judge's best of `best_of` samples, and `samples.json`.

    Returns:
        What `samples.json` holds: file and prompt of every picture, and with `best_of` the mean log-odds of each
        candidate against the others, and which was kept.
    """
    if num < 1 or best_of < 1 or drawing.num_steps < 1 or drawing.sample_batch < 1:
        raise ConfigError("num, best-of, num-steps and sample-batch must be 1 or more")
    model = load_generator(
        drawing.generator,
        adapter=adapter,
        guidance=drawing.guidance,
        dtype=drawing.dtype,
        resolution=drawing.resolution,
    )
    ready = load_judge(judge) if best_of > 1 else None
    out.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    together = max(1, drawing.sample_batch // (num * best_of))
    with progress("prompts") as report:
        for start in range(0, len(prompts), together):
            part = prompts[start : start + together]
            drawn = _draw(model, part, num * best_of, drawing, seed)
            asked = [p for p in part for _ in range(num)]
            groups = [drawn[i : i + best_of] for i in range(0, len(drawn), best_of)]
            chosen = [None] * len(groups) if ready is None else select(ready, asked, groups, criterion)
            for prompt, group, found in zip(asked, groups, chosen, strict=True):
                listed.append(_write(out, len(listed), prompt, group, found))
            report(start + len(part), len(prompts))
    write_json(out / "samples.json", listed)
    return listed


def _draw(model: Tunable, prompts: Sequence[str], each: int, drawing: Drawing, seed: int) -> list[Media]:
    """`each` pictures of every prompt; their noise depends on seed and prompt alone, not on what else is drawn."""
    rngs = [torch.Generator().manual_seed(seed_of(seed, "sample", p)) for p in prompts]
    noise = torch.cat([model.noise(each, rng) for rng in rngs])
    flat, found = [p for p in prompts for _ in range(each)], list[Media]()
    with torch.no_grad(), autocast(model.device, drawing.precision):
        for i in range(0, len(flat), drawing.sample_batch):
            rows = slice(i, i + drawing.sample_batch)
            found += model.decode(sample(model, model.condition(flat[rows]), noise[rows], drawing.num_steps))
    return found


def _write(out: Path, number: int, prompt: str, group: Sequence[Media], found: Selection | None) -> dict[str, Any]:
    path = out / f"{number:03d}.png"
    group[0 if found is None else found.best].to_pil().save(path)
    entry = {"file": path.name, "prompt": prompt}
    return entry if found is None else {**entry, "kept": found.best, "margins": found.margin.tolist()}
