"""`rewarddance data build`: preferences of the embedded world as Parquet, three splits in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rewarddance.core.clips import need_pyav
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import progress
from rewarddance.core.runs import check_settings, same_settings
from rewarddance.data.folder import CHANGES_FILE
from rewarddance.data.parquet import row_of, write_rows
from rewarddance.jobs.load import load_generator, load_task
from rewarddance.world.build.clip_preferences import ClipPreferencesConfig, MotionTask, change_records, clip_records
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
        _build_split(num, partial(embedded_records, part, draw), out / name, num_criteria(part))
    return out


CHANGES_EACH = 48
"""Held-out pairs for every kind of change to a clip."""
CLIPS_MADE = 2
"""As `MADE`, for clips. 2: the oracle counts missing frames for `turning` too, and training clips that are as rendered
are not drawn again."""


CLIPS_AT_ONCE = 32
"""Clips that a generator draws and decodes together."""


def build_moving(
    folder: Path, seed: int = 0, num_held_out: int = NUM_HELD_OUT, generator: str | None = None, **preferences: Any
) -> Path:
    """`build_clips` with the fields of `ClipPreferencesConfig`."""
    return build_clips(ClipPreferencesConfig(seed=seed, **preferences), num_held_out, folder, generator=generator)


def build_clips(
    config: ClipPreferencesConfig,
    num_held_out: int,
    out: Path,
    changes: int = CHANGES_EACH,
    generator: str | None = None,
    num_steps: int = 10,
) -> Path:
    """Preferences between clips of the moving world: the three files of `build_data`, and `changes.parquet`.

    `changes.parquet` holds held-out pairs of a right clip and one with a single change, `changes` of every kind; the
    kind is the source of the record. Clips are stored as lossless MP4, so this needs PyAV.

    Args:
        generator: generator whose clips are judged beside renders; None for renders alone.
        num_steps: about how many sampling steps its clips have.

    Raises:
        RunError: the folder holds data of another configuration.
        InputError: PyAV is missing.
        ConfigError: the generator does not draw the world's clips of this task.
    """
    settings = {**config.model_dump(mode="json"), "num_held_out": num_held_out, "changes": changes, "made": CLIPS_MADE}
    settings |= {"generator": generator or "none", "num_steps": num_steps if generator else None}
    earlier = {"generator": "none", "single_share": 0.0}
    check_settings(out / "data.json", settings, absent=earlier)
    need_pyav("preferences of clips")
    finished = all((out / name).is_file() for name in SPLIT_FILES.values())
    draw = None if generator is None or finished else _clips_of(generator, config.task, num_steps)
    same_settings(out / "data.json", settings, absent=earlier)
    for split, name in SPLIT_FILES.items():
        num = config.num_prompts if split == "train" else num_held_out
        shuffled = config.shuffle_labels and split == "train"
        part = config.model_copy(update={"split": split, "num_prompts": num, "shuffle_labels": shuffled})
        if not (out / name).is_file():
            _build_split(num, partial(clip_records, part, draw_clips=draw), out / name)
    if changes and not (out / CHANGES_FILE).is_file():
        held_out = config.model_copy(update={"split": "held_out", "shuffle_labels": False})
        write_rows(map(row_of, change_records(held_out, changes)), out / CHANGES_FILE)
    return out


def _clips_of(name: str, task: MotionTask, num_steps: int) -> DrawImages:
    generator = load_generator(name)
    load_task("embedded-video" if task == "t2v" else "embedded-image-to-video").check(generator.drawn)
    return draw_images(generator, num_steps, CLIPS_AT_ONCE)


def _build_split(
    num_prompts: int, records: Callable[[int, int], Iterator[PreferenceRecord]], target: Path, of_a_prompt: int = 1
) -> None:
    """Write parts of `SHARD` prompts, then join them.

    Args:
        records: the records of the prompts from the first to the last number.
        of_a_prompt: number of records of a prompt.
    """
    folder = target.with_name(f".{target.stem}.parts")
    parts = [folder / f"{first:07d}.parquet" for first in range(0, num_prompts, SHARD)]
    with progress(target.name) as report:

        def rows(first: int) -> Iterator[dict[str, Any]]:
            report(first, num_prompts)  # show the bar before the first pictures are drawn
            for i, record in enumerate(records(first, first + SHARD), of_a_prompt):
                report(first + i // of_a_prompt, num_prompts)
                yield row_of(record)

        for k, part in enumerate(parts):
            if not part.is_file():
                write_rows(rows(k * SHARD), part)
    write_rows((row for part in parts for row in pq.read_table(part).to_pylist()), target)
    shutil.rmtree(folder)
