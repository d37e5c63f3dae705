"""`rewarddance data build`: preferences of the embedded world as Parquet, three splits in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rewarddance.core.progress import progress
from rewarddance.core.runs import same_settings
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.load import load_generator
from rewarddance.world.build.preferences import (
    DrawImages,
    PreferencesConfig,
    draw_images,
    embedded_records,
    num_criteria,
)
from rewarddance.world.splits import Split

SPLIT_FILES: dict[Split, str] = {"train": "train.parquet", "held_out": "id.parquet", "ood": "ood.parquet"}
NUM_HELD_OUT = 128
"""Prompts in each of the two held-out splits."""
MADE = 3
"""Version of the data that one configuration builds. A folder of an older version is not continued.

2: pictures that show held-out content are left out. 3: 30 per cent of the training edits change the background.
"""
SHARD = 1024
"""Prompts in a part. A stopped build continues at the first part that is not on the disk."""


def build_embedded(
    folder: Path, seed: int = 0, num_held_out: int = NUM_HELD_OUT, generator: str | None = "tiny", **preferences: Any
) -> Path:
    """`build_data` with the fields of `PreferencesConfig`; its defaults are what the shipped judge's recipe takes."""
    return build_data(PreferencesConfig(seed=seed, **preferences), num_held_out, generator, folder)


def build_data(
    config: PreferencesConfig, num_held_out: int, generator: str | None, out: Path, num_steps: int = 10
) -> Path:
    """Write `train.parquet`, `id.parquet` and `ood.parquet`. After a stop, the next call continues.

    Args:
        num_held_out: prompts in each of the two held-out splits.
        generator: generator whose samples are judged beside renders; None for renders alone.

    Raises:
        RunError: the folder holds data of another configuration.
    """
    settings = {**config.model_dump(mode="json"), "num_held_out": num_held_out, "generator": generator, "made": MADE}
    same_settings(out / "data.json", {k: v if v is not None else "none" for k, v in settings.items()})
    draw: DrawImages | None = None
    for split, name in SPLIT_FILES.items():
        if (out / name).is_file():
            continue
        if generator is not None and draw is None:
            draw = draw_images(load_generator(generator), num_steps)
        num = config.num_prompts if split == "train" else num_held_out
        shuffled = config.shuffle_labels and split == "train"
        part = config.model_copy(update={"split": split, "num_prompts": num, "shuffle_labels": shuffled})
        _build_split(part, draw, out / name)
    return out


def _build_split(config: PreferencesConfig, draw: DrawImages | None, target: Path) -> None:
    """Write parts of `SHARD` prompts, then join them."""
    folder = target.with_name(f".{target.stem}.parts")
    parts = [folder / f"{first:07d}.parquet" for first in range(0, config.num_prompts, SHARD)]
    with progress(target.name) as report:

        def rows(first: int) -> Iterator[dict[str, Any]]:
            report(first, config.num_prompts)  # show the bar before the first pictures are drawn
            of_a_prompt = num_criteria(config)
            for i, record in enumerate(embedded_records(config, draw, first, first + SHARD), of_a_prompt):
                report(first + i // of_a_prompt, config.num_prompts)
                yield row_of(record)

        for k, part in enumerate(parts):
            if not part.is_file():
                write_rows(rows(k * SHARD), part)
    write_rows((row for part in parts for row in pq.read_table(part).to_pylist()), target)
    shutil.rmtree(folder)
