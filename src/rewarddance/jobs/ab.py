"""`rewarddance ab create`: pictures of the same prompts and noises by several systems, as one data folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.runs import RunFolder, same_settings
from rewarddance.core.task import Prompt
from rewarddance.data.prompts import read_prompts
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_shards
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.evaluate.ab import needed, visible
from rewarddance.jobs.load import load_task
from rewarddance.jobs.sample import Sampling, sample_to_folder


@dataclass(frozen=True)
class Study:
    """The setting of a study. `systems`: letter -> run, generator, or folder of samples. `prompts`: a number, or a
    file."""

    systems: Mapping[str, str]
    prompts: str
    task: str
    judgements: int
    criteria: tuple[str, ...]
    seed: int


def create(study: Study, out: Path) -> dict[str, Any]:
    """Write `train.parquet`, `study.json` and `pictures/`. A call after a stop continues with the next system.

    Returns:
        The content of `study.json`, with `identical`: prompts on which two systems drew the same picture, which people
        cannot compare; `visible`: the smallest win rate that all votes of a pair detect with a power of 0.8; and
        `needed_for_55`: votes that are needed to detect a win rate of 55 per cent.

    Raises:
        InputError: too few prompts, or a folder of samples without one of them.
        RunError: the folder holds another study.
    """
    prompts = chosen_prompts(study)
    texts = [p.text for p in prompts]
    facts = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(study).items()}
    same_settings(out / "study.json", facts | {"num_prompts": len(prompts)})
    files = {
        letter: _pictures(run, texts, out / "pictures" / letter, study.seed) for letter, run in study.systems.items()
    }
    identical = 0
    rows = []
    for place, prompt in enumerate(prompts):
        content = {letter: files[letter][prompt.text].read_bytes() for letter in study.systems}
        media = tuple(MediaRef(model=name, sha256=hash_of(data), data=data) for name, data in content.items())
        identical += len({m.sha256 for m in media}) < len(media)
        groups = {"category": prompt.category} if prompt.category else {}
        rows.append(
            row_of_votes(VotedRecord(f"{place:05d}", prompt.text, media, source="rewarddance ab", groups=groups))
        )
    write_shards(iter(rows), out / "train.parquet")
    return {
        **facts,
        "num_prompts": len(prompts),
        "identical": identical,
        "votes_a_pair": len(prompts) * study.judgements,
        "visible": round(visible((len(prompts) - identical) * study.judgements), 3),
        "needed_for_55": needed(0.55, per_prompt=study.judgements),
    }


def chosen_prompts(study: Study) -> Sequence[Prompt]:
    """The prompts of a study, spread evenly over the benchmark where a number of them is asked for."""
    if not study.prompts.isdigit():
        return read_prompts(Path(study.prompts))[0]
    number, known = int(study.prompts), load_task(study.task).benchmark()
    if not 1 <= number <= len(known):
        raise InputError(
            f"--prompts {number}: the benchmark of task {study.task} has {len(known)}; name a file for more"
        )
    return [known[i * len(known) // number] for i in range(number)]


def _pictures(run: str, prompts: Sequence[str], out: Path, seed: int) -> dict[str, Path]:
    """The picture of every prompt. They are drawn to `out` where `run` is not a folder of samples."""
    folder = Path(run)
    if not (folder / "samples.json").is_file():
        folder = out
        if not (out / "samples.json").is_file():
            sampling, adapter = _sampler(run)
            sample_to_folder(prompts, out, sampling, num=1, adapter=adapter, seed=seed)
    made: dict[str, Path] = {}
    for entry in json.loads((folder / "samples.json").read_text()):
        if {"file", "prompt"} <= entry.keys():
            made.setdefault(entry["prompt"], folder / entry["file"])
    missing = [p for p in prompts if p not in made]
    if missing:
        raise InputError(
            f"{folder}: has no picture of {len(missing)} of {len(prompts)} prompts, for example {missing[0]!r}"
        )
    return made


def _sampler(run: str) -> tuple[Sampling, Path | None]:
    folder = Path(run)
    if (folder / "run.json").is_file():
        if RunFolder(folder).read()["kind"] != "align":
            raise ConfigError(f"{run}: not a run of `align`, so it draws no pictures")
        return Sampling.of_run(folder), folder
    return replace(Sampling(), generator=run), None
