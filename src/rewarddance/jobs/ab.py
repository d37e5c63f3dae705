"""`rewarddance ab create`: pictures of the same prompts and noises by several systems, as one data folder."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rewarddance.core.clips import SUFFIXES
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.pictures import open_image
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, same_settings
from rewarddance.core.task import Prompt
from rewarddance.data.prompts import read_prompts
from rewarddance.data.schema import hash_of, png_bytes, row_of_votes
from rewarddance.data.shards import write_shards
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.evaluate.ab import needed, visible
from rewarddance.jobs.load import load_task
from rewarddance.jobs.sample import Sampling, sample_to_folder
from rewarddance.jobs.sample_files import square_of

EMBEDDED = "embedded"
MAX_PROMPTS = 200
"""Prompts of a study that does not say how many, if the benchmark has so many."""
SHARED = ("num_steps", "guidance", "resolution")
"""Settings of `Sampling` that all drawn systems of a study share, so that people judge the systems alone."""


@dataclass(frozen=True)
class Study:
    """The setting of a study.

    Attributes:
        systems: letter -> run, generator, or folder of samples.
        prompts: a number, or a file. When None, `MAX_PROMPTS`, or all prompts of a smaller benchmark.
        task: whose benchmark gives a number of prompts. When None, that of the runs; `embedded` where there is no run.
        num_steps, guidance, resolution: how all systems draw that are not folders of samples. Where None, the runs
            among them say it, and `Sampling`'s defaults hold where there is no run.
    """

    systems: Mapping[str, str]
    prompts: str | None
    task: str | None
    judgements: int
    criteria: tuple[str, ...]
    seed: int
    num_steps: int | None = None
    guidance: float | None = None
    resolution: int | None = None

    @property
    def has_file(self) -> bool:
        """Whether the prompts come from a file. Then no task is needed."""
        return self.prompts is not None and not self.prompts.isdigit()


def create(study: Study, out: Path) -> dict[str, Any]:
    """Write `train.parquet`, `study.json` and `pictures/`. A call after a stop continues with the next system.

    Returns:
        The content of `study.json`: the settings; `sampling`: which systems were drawn, and with which steps, guidance
        and resolution (None if all are folders of samples); and `identical`: for each pair of systems (`A-B`) the
        prompts on which both gave the same file, which people are not asked about. Besides `votes_a_pair`;
        `visible`: the smallest win rate that the votes of a pair detect with a power of 0.8 (for the pair with the
        fewest prompts; None if even unanimous votes are too few); and `needed_for_55`: votes that are needed to detect
        a win rate of 55 per cent.

    Raises:
        ConfigError: runs of different tasks or that draw with different settings, or a run that draws no pictures.
        InputError: too few prompts, or a folder of samples without one of them.
        RunError: the folder holds another study.
    """
    drawn = _samplings(study)
    if not study.has_file:
        study = replace(study, task=task_of(study))
    prompts = chosen_prompts(study)
    texts = [p.text for p in prompts]
    study = replace(study, prompts=study.prompts or str(len(prompts)))
    facts = {k: v for k, v in asdict(study).items() if k not in SHARED}
    facts |= {"criteria": list(study.criteria), "num_prompts": len(prompts), "sampling": _shared(drawn)}
    same_settings(out / "study.json", facts)
    files: dict[str, dict[str, Path]] = {}
    for letter, run in study.systems.items():
        folder = Path(run)
        if letter in drawn:
            folder = out / "pictures" / letter
            if not (folder / "samples.json").is_file():
                sampling, adapter = drawn[letter]
                sample_to_folder(prompts, folder, sampling, num=1, adapter=adapter, seed=study.seed)
        files[letter] = _pictures(folder, texts)
    pairs = list(combinations(study.systems, 2))
    identical = {f"{a}-{b}": 0 for a, b in pairs}
    rows, unequal = [], 0
    for place, prompt in enumerate(prompts):
        media = {letter: _medium(files[letter][prompt.text], letter, out) for letter in study.systems}
        for a, b in pairs:
            identical[f"{a}-{b}"] += media[a].sha256 == media[b].sha256
        sizes = {_size(ref) for ref in media.values()}
        unequal += len(sizes) > 1
        groups = {"category": prompt.category} if prompt.category else {}
        all_media = (*media.values(), *_condition(prompt, sizes))
        record = VotedRecord(f"{place:05d}", prompt.text, all_media, source="rewarddance ab", groups=groups)
        rows.append(row_of_votes(record))
    write_shards(iter(rows), out / "train.parquet")
    if unequal:
        say(f"{unequal} prompts have pictures of different sizes, by which people may tell the systems apart")
    same_settings(out / "study.json", facts | {"identical": identical})
    fewest = (len(prompts) - max(identical.values())) * study.judgements
    least = visible(fewest, per_prompt=study.judgements)
    return {
        **facts,
        "identical": identical,
        "votes_a_pair": {name: (len(prompts) - same) * study.judgements for name, same in identical.items()},
        "visible": None if least is None else round(least, 3),
        "needed_for_55": needed(0.55, per_prompt=study.judgements),
    }


def task_of(study: Study) -> str:
    """The task of a study: the one that it states, that of its runs, or `embedded`.

    A run on a file of prompts has no task.

    Raises:
        ConfigError: the runs have different tasks.
    """
    if study.task is not None:
        return study.task
    tasks = {}
    for run in study.systems.values():
        if (Path(run) / "run.json").is_file() and not (Path(run) / "samples.json").is_file():
            config = RunFolder(Path(run)).read()["config"]
            if config.get("prompts") is None:
                tasks[run] = config.get("task", EMBEDDED)
    if len(set(tasks.values())) > 1:
        shown = ", ".join(f"{run} {task}" for run, task in tasks.items())
        raise ConfigError(f"ab create: the runs are of different tasks ({shown}); give --task for the prompts of one")
    return next(iter(tasks.values()), EMBEDDED)


def chosen_prompts(study: Study) -> Sequence[Prompt]:
    """The prompts of a study, spread evenly over the benchmark of its task where a file does not give them.

    Raises:
        InputError: the study asks for more prompts than the benchmark has.
    """
    if study.has_file:
        return read_prompts(Path(str(study.prompts)))[0]
    known = load_task(study.task or EMBEDDED).benchmark()
    number = min(MAX_PROMPTS, len(known)) if study.prompts is None else int(study.prompts)
    if not 1 <= number <= len(known):
        raise InputError(
            f"--prompts {number}: the benchmark of task {study.task} has {len(known)}; name a file for more"
        )
    return [known[i * len(known) // number] for i in range(number)]


def _pictures(folder: Path, prompts: Sequence[str]) -> dict[str, Path]:
    """The first picture of every prompt in a folder of `sample`."""
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


def _medium(file: Path, model: str, out: Path) -> MediaRef:
    """A picture, or a clip, which is copied to `out/clips`, since records name their clips."""
    data = file.read_bytes()
    name = hash_of(data)
    if file.suffix.lower() not in SUFFIXES:
        return MediaRef(model=model, sha256=name, data=data)
    path = f"clips/{name}{file.suffix.lower()}"
    (out / "clips").mkdir(parents=True, exist_ok=True)
    (out / path).write_bytes(data)
    return MediaRef("video", path, name, model, data=data)


def _condition(prompt: Prompt, sizes: AbstractSet[tuple[int, int]]) -> list[MediaRef]:
    """The picture that the samples of a prompt were made from, if it has one, as a PNG file.

    If all samples have the same square size, the picture is cut and scaled as in `sample`, so that people see how a
    clip should begin.
    """
    picture = prompt.condition
    if picture is None:
        return []
    if len(sizes) == 1 and len(set(next(iter(sizes)))) == 1:
        picture = square_of(picture, next(iter(sizes))[0])
    content = png_bytes(picture)
    return [MediaRef(sha256=hash_of(content), role="condition", data=content)]


def _size(ref: MediaRef) -> tuple[int, int]:
    content = io.BytesIO(ref.data or b"")
    if ref.kind == "video":
        return Media.open(content, origin=ref.path).size
    with open_image(content) as image:
        return image.size


def _samplings(study: Study) -> dict[str, tuple[Sampling, Path | None]]:
    """How every system that is not a folder of samples draws, and its adapter. All share `SHARED`.

    Raises:
        ConfigError: not a run of `align`; or the runs differ in one of `SHARED` and the study gives no value for it.
    """
    plain: dict[str, tuple[Sampling, Path | None]] = {}
    for letter, run in study.systems.items():
        folder = Path(run)
        if (folder / "samples.json").is_file():
            continue
        if (folder / "run.json").is_file():
            if RunFolder(folder).read()["kind"] != "align":
                raise ConfigError(f"{run}: not a run of `align`, so it draws no pictures")
            plain[letter] = (Sampling.of_run(folder), folder)
        else:
            plain[letter] = (replace(Sampling(), generator=run), None)
    shared = {name: _one_value(name, study, plain) for name in SHARED}
    return {letter: (replace(sampling, **shared), adapter) for letter, (sampling, adapter) in plain.items()}


def _one_value(name: str, study: Study, plain: Mapping[str, tuple[Sampling, Path | None]]) -> Any:
    """The value of one of `SHARED` for all drawn systems: the study's, that of its runs, or the default."""
    stated = getattr(study, name)
    if stated is not None:
        return stated
    by_run = {study.systems[letter]: getattr(s, name) for letter, (s, adapter) in plain.items() if adapter is not None}
    values = list(dict.fromkeys(by_run.values()))
    if len(values) > 1:
        shown = ", ".join(f"{run} {value}" for run, value in by_run.items())
        flag = f"--{name.replace('_', '-')}"
        raise ConfigError(
            f"ab create: the runs draw with different {name.replace('_', ' ')} ({shown}), and people would judge that "
            f"too; give {flag} for all, or draw each system with `sample` and name the folders"
        )
    return values[0] if values else getattr(Sampling(), name)


def _shared(drawn: Mapping[str, tuple[Sampling, Path | None]]) -> dict[str, Any] | None:
    """`sampling` of `study.json`."""
    if not drawn:
        return None
    first = next(iter(drawn.values()))[0]
    return {"systems": list(drawn), **{name: getattr(first, name) for name in SHARED}}
