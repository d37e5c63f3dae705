"""`rewarddance sample`: pictures of prompts to a folder, the judge's best of several where it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError
from rewarddance.core.runs import write_json
from rewarddance.jobs.load import load_generator, load_judge
from rewarddance.search.best_of_n import Selection, draw, select


def sample_to_folder(
    prompts: Sequence[str],
    out: Path,
    *,
    num: int,
    generator: str,
    adapter: Path | None,
    best_of: int,
    judge: str,
    criterion: str | None,
    num_steps: int,
    guidance: float,
    seed: int,
    batch: int = 128,
    dtype: Literal["fp32", "bf16"] = "fp32",
    resolution: int | None = None,
) -> list[dict[str, Any]]:
    """Write `num` PNG files a prompt, each the judge's best of `best_of` samples, and `samples.json`.

    Args:
        batch: pictures sampled and decoded at once.

    Returns:
        What `samples.json` holds: file and prompt of every picture, and with `best_of` the mean log-odds of each
        candidate against the others, and which was kept.
    """
    if num < 1 or best_of < 1 or num_steps < 1 or batch < 1:
        raise ConfigError("num, best-of, num-steps and sample-batch must be 1 or more")
    model = load_generator(generator, adapter=adapter, guidance=guidance, dtype=dtype, resolution=resolution)
    ready = load_judge(judge) if best_of > 1 else None
    rng = torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    for prompt in prompts:
        with autocast(model.device):
            groups = draw(model, [prompt] * num, best_of, rng, num_steps, batch)
        if ready is None:
            chosen: list[Selection | None] = [None] * num
        else:
            chosen = [*select(ready, [prompt] * num, groups, criterion)]
        for drawn, found in zip(groups, chosen, strict=True):
            path = out / f"{len(listed):03d}.png"
            entry: dict[str, Any] = {"file": path.name, "prompt": prompt}
            if found is not None:
                entry |= {"kept": found.best, "margins": found.margin.tolist()}
            drawn[0 if found is None else found.best].to_pil().save(path)
            listed.append(entry)
    write_json(out / "samples.json", listed)
    return listed
