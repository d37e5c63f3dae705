"""`rewarddance data build`: preferences of the embedded world as Parquet, three splits in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import progress
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.build.preferences import Draw, PreferencesConfig, embedded_records, generator_draw
from rewarddance.world.splits import Split

SPLIT_FILES: dict[Split, str] = {"train": "train.parquet", "held_out": "id.parquet", "ood": "ood.parquet"}


def build_data(
    config: PreferencesConfig, num_held_out: int, generator: str | None, out: Path, num_steps: int = 10
) -> Path:
    """Write `train.parquet`, `id.parquet` and `ood.parquet`.

    Args:
        num_held_out: prompts in each of the two held-out splits.
        generator: whose samples are judged beside renders; None for renders alone.
    """
    draw: Draw | None = None
    if generator is not None:
        from rewarddance.jobs.load import load_generator

        draw = generator_draw(load_generator(generator), num_steps)
    for split, name in SPLIT_FILES.items():
        num = config.num_prompts if split == "train" else num_held_out
        part = config.model_copy(update={"split": split, "num_prompts": num})
        if split != "train":
            part = part.model_copy(update={"shuffle_labels": False})
        write_rows(_counted(part, draw, name), out / name)
    write_json(
        out / "data.json", {**config.model_dump(mode="json"), "num_held_out": num_held_out, "generator": generator}
    )
    return out


def _counted(config: PreferencesConfig, draw: Draw | None, title: str) -> Iterator[dict[str, Any]]:
    with progress(title) as report:
        for i, record in enumerate(embedded_records(config, draw), 1):
            report(i, config.num_prompts)
            yield row_of(record)


def records_in_memory(config: PreferencesConfig, draw: Draw | None, title: str) -> list[PreferenceRecord]:
    """As `build_data`, without the files: for the demo and for tests."""
    found = []
    with progress(title) as report:
        for i, record in enumerate(embedded_records(config, draw), 1):
            report(i, config.num_prompts)
            found.append(record)
    return found
