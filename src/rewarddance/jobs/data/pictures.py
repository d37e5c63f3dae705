"""`rewarddance data build --prompts`: pictures of a file of prompts, for people to compare. Prompts x settings x seeds.

The work is cut into parts of `PART` prompts. Each process claims parts and draws them. A part appears only when it is
whole. So several processes may work on one folder, and a killed process leaves no half part. A part is always drawn in
the same batches, so the rows do not depend on the number of processes.

An engine decides which processes draw: this one (`draw_here`), or actors of Ray (`jobs/data/ray_engine.py`). Both call
`Parts.draw`, so they write the same rows.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.lock import folder_lock
from rewarddance.core.progress import ReportProgress, progress
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import same_settings
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Prompt
from rewarddance.data.folder import describe_folder
from rewarddance.data.parquet import stored_rows
from rewarddance.data.prompts import read_prompts
from rewarddance.data.schema import hash_of, png_bytes, row_of_votes
from rewarddance.data.shards import split_files, write_rows, write_shards
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.generator.trace import draw
from rewarddance.jobs.load import find, is_embedded, weights_id
from rewarddance.jobs.sample import Sampling

PART = 32
"""Prompts in a part."""


@dataclass(frozen=True)
class Pool:
    """Which pictures a pool holds.

    Attributes:
        images_per_prompt: seeds of every prompt and setting. One seed has the same noise under all settings.
        num_steps, guidance: the settings are all combinations of these.
    """

    sampling: Sampling
    images_per_prompt: int = 4
    num_steps: tuple[int, ...] = (20,)
    guidance: tuple[float, ...] = (1.0,)
    seed: int = 0

    @property
    def settings(self) -> list[tuple[int, float]]:
        return list(product(self.num_steps, self.guidance))


@dataclass(frozen=True)
class Parts:
    """The work of an engine: parts of `size` prompts, each one file below `folder`. A part has the number of its first
    prompt.

    Attributes:
        source: what `load_generator` takes. Rows name the generator as `pool.sampling` does.
        adapter, folder: absolute paths, because workers may start in another folder. Every worker must see them.
    """

    prompts: Sequence[Prompt]
    pool: Pool
    source: str
    adapter: Path | None
    folder: Path
    size: int

    @property
    def starts(self) -> range:
        return range(0, len(self.prompts), self.size)

    def path(self, start: int) -> Path:
        return self.folder / ".parts" / f"{start:07d}" / "rows.parquet"

    def missing(self) -> list[int]:
        """Parts that nobody has finished."""
        if split_files(self.folder / "train.parquet"):
            return []
        return [start for start in self.starts if not self.path(start).is_file()]

    def load(self) -> Tunable:
        return replace(self.pool.sampling, generator=self.source).load(self.adapter)

    def draw(self, start: int, generator: Callable[[], Tunable]) -> bool:
        """Draw a part, unless it is there or another process draws it. Returns whether this call has written it."""
        path = self.path(start)
        with folder_lock(path.parent) as claimed:
            if not claimed or path.is_file() or split_files(self.folder / "train.parquet"):
                return False
            write_rows(_rows(generator(), self.prompts[start : start + self.size], start, self.pool), path)
        return True


PoolEngine = Callable[[Parts, ReportProgress], None]
"""Draws every missing part that no other process draws, and reports how many prompts are done."""


def draw_here(parts: Parts, report: ReportProgress) -> None:
    """The local engine: this process draws one part after the other."""
    generator = cache(parts.load)
    num = len(parts.prompts)
    progressed = True
    while progressed:  # another round takes over the parts of a process that was killed meanwhile
        progressed = False
        for start in parts.starts:
            progressed |= parts.draw(start, generator)
            report(min(start + parts.size, num), num)


def build_pictures(
    prompts: Path, out: Path, pool: Pool, adapter: Path | None = None, engine: PoolEngine = draw_here
) -> dict[str, Any]:
    """Draw every part that no other process draws; the last one done joins them to `out/train.parquet`.

    Args:
        engine: which processes draw. The rows do not depend on it, so a stopped build may continue with another one.

    Returns:
        Numbers of prompts and pictures, and whether all parts are there.

    Raises:
        RunError: the folder holds pictures of other prompts or settings.
    """
    requests, sha256 = read_prompts(prompts)
    sampling = pool.sampling
    made_with = {
        "prompts_sha256": sha256,
        "generator": sampling.generator,
        "weights": weights_id(find(sampling.generator, "generator")),
        "adapter": None if adapter is None else weights_id(adapter),
        "images_per_prompt": pool.images_per_prompt,
        "num_steps": list(pool.num_steps),
        "guidance": list(pool.guidance),
        "seed": pool.seed,
        "sample_batch": sampling.sample_batch,
        "resolution": sampling.resolution or "the generator's own",
        "dtype": sampling.dtype,
        "precision": sampling.precision,
        "max_sequence_length": sampling.max_sequence_length,
    }
    same_settings(out / "pool.json", {k: "none" if v is None else v for k, v in made_with.items()})
    numbers = {"prompts": len(requests), "pictures": len(requests) * pool.images_per_prompt * len(pool.settings)}
    parts = Parts(
        requests,
        pool,
        # the package's own generator may lie elsewhere on another machine
        sampling.generator
        if is_embedded(sampling.generator, "generator")
        else str(find(sampling.generator, "generator").absolute()),
        None if adapter is None else adapter.absolute(),
        out.absolute(),
        PART,
    )
    if parts.missing():
        with progress("prompts") as bar:
            engine(parts, bar)
    return {**numbers, "complete": _join(out, [parts.path(start) for start in parts.starts], made_with)}


def _join(out: Path, parts: Sequence[Path], made_with: dict[str, Any]) -> bool:
    """Join the parts if all are there. Returns whether `train.parquet` is there."""
    target = out / "train.parquet"
    while True:
        with folder_lock(out) as claimed:
            if claimed and not split_files(target) and all(p.is_file() for p in parts):
                write_shards((row for part in parts for row in stored_rows(part)), target)
                describe_folder(out, {"built": made_with})
            if claimed:
                complete = bool(split_files(target))
                if complete:
                    shutil.rmtree(out / ".parts", ignore_errors=True)
                return complete
        time.sleep(0.1)  # another process checks whether all parts are there, or joins them


def _rows(generator: Tunable, prompts: Sequence[Prompt], start: int, pool: Pool) -> Iterator[dict[str, Any]]:
    """Rows of some prompts; the first one is number `start` of the file."""
    num_images = pool.images_per_prompt
    texts = [p.text for p in prompts for _ in range(num_images)]
    seeds = [seed_of(pool.seed, "pool", p.text, i) for p in prompts for i in range(num_images)]
    noise = torch.cat([generator.noise(1, torch.Generator().manual_seed(s)) for s in seeds])
    drawn: list[list[MediaRef]] = [[] for _ in prompts]
    for num_steps, guidance in pool.settings:
        generator.guidance = guidance
        pictures = draw(generator, texts, noise, num_steps, batch=pool.sampling.sample_batch)
        for place, (media, seed) in enumerate(zip(pictures, seeds, strict=True)):
            facts = {"seed": seed, "num_steps": num_steps, "guidance": guidance, "precision": generator.precision}
            content = png_bytes(media)
            ref = MediaRef(sha256=hash_of(content), model=pool.sampling.generator, data=content)
            drawn[place // num_images].append(replace(ref, settings=json.dumps(facts)))
    for number, (prompt, media_refs) in enumerate(zip(prompts, drawn, strict=True), start):
        groups = {"generator": pool.sampling.generator} | ({"category": prompt.category} if prompt.category else {})
        yield row_of_votes(
            VotedRecord(f"prompt-{number:06d}", prompt.text, tuple(media_refs), (), "generator", None, groups)
        )
