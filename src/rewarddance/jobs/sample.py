"""`rewarddance sample`: pictures of a prompt to a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from rewarddance.core.errors import ConfigError
from rewarddance.jobs.load import load_generator, load_judge
from rewarddance.search.best_of_n import draw, select


def sample_to_folder(
    prompt: str,
    out: Path,
    *,
    num: int,
    generator: str,
    adapter: Path | None,
    best_of: int,
    judge: str,
    criterion: str,
    num_steps: int,
    guidance: float,
    seed: int,
) -> list[Path]:
    """Write `num` PNG files, each the judge's best of `best_of` samples."""
    if num < 1 or best_of < 1 or num_steps < 1:
        raise ConfigError("num, best-of and num-steps must be 1 or more")
    model = load_generator(generator, adapter=adapter, guidance=guidance)
    rng = torch.Generator().manual_seed(seed)
    groups = draw(model, [prompt] * num, best_of, rng, num_steps)
    if best_of > 1:
        kept = [s.winner for s in select(load_judge(judge), [prompt] * num, groups, criterion)]
    else:
        kept = [g[0] for g in groups]
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{i:03d}.png" for i in range(num)]
    for path, media in zip(paths, kept, strict=True):
        media.to_pil().save(path)
    return paths
