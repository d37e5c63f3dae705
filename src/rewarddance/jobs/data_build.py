"""`rewarddance data build`: preferences of the embedded world as Parquet, three splits in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rewarddance.core.errors import RunError
from rewarddance.core.progress import progress
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.build.preferences import Draw, PreferencesConfig, embedded_records, generator_draw
from rewarddance.world.splits import Split

SPLIT_FILES: dict[Split, str] = {"train": "train.parquet", "held_out": "id.parquet", "ood": "ood.parquet"}


MADE = 3
"""Counts changes of what one configuration builds, so that a folder of before is not gone on with.

2: pictures that show what is held out are left out. 3: three training edits in ten are of the background.
"""
SHARD = 1024
"""Prompts in a part; a stopped build goes on with the part that it was at."""


def build_data(
    config: PreferencesConfig, num_held_out: int, generator: str | None, out: Path, num_steps: int = 10
) -> Path:
    """Write `train.parquet`, `id.parquet` and `ood.parquet`. Called again after a stop, it goes on.

    Args:
        num_held_out: prompts in each of the two held-out splits.
        generator: whose samples are judged beside renders; None for renders alone.

    Raises:
        RunError: the folder holds data of another configuration.
    """
    facts = {**config.model_dump(mode="json"), "num_held_out": num_held_out, "generator": generator, "made": MADE}
    described = out / "data.json"
    if described.is_file() and json.loads(described.read_text()) != facts:
        raise RunError(f"{out}: holds data of another configuration; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(described, facts)
    loaded: Any = None
    for split, name in SPLIT_FILES.items():
        if (out / name).is_file():
            continue
        if generator is not None and loaded is None:
            from rewarddance.jobs.load import load_generator

            loaded = load_generator(generator)
        draw = generator_draw(loaded, num_steps) if loaded else None
        num = config.num_prompts if split == "train" else num_held_out
        shuffled = config.shuffle_labels and split == "train"
        part = config.model_copy(update={"split": split, "num_prompts": num, "shuffle_labels": shuffled})
        _build_split(part, draw, out / name)
    return out


def _build_split(config: PreferencesConfig, draw: Draw | None, target: Path) -> None:
    """Write parts of `SHARD` prompts, then join them."""
    folder = target.with_name(f".{target.stem}.parts")
    parts = [folder / f"{first:07d}.parquet" for first in range(0, config.num_prompts, SHARD)]
    with progress(target.name) as report:

        def rows(first: int) -> Iterator[dict[str, Any]]:
            report(first, config.num_prompts)  # the first pictures take a while
            for i, record in enumerate(embedded_records(config, draw, first, first + SHARD), first + 1):
                report(i, config.num_prompts)
                yield row_of(record)

        for k, part in enumerate(parts):
            if not part.is_file():
                write_rows(rows(k * SHARD), part)
    write_rows((row for part in parts for row in pq.read_table(part).to_pylist()), target)
    shutil.rmtree(folder)
