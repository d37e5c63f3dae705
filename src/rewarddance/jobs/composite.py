"""Loads composites from their YAML files, and fits their means, deviations and index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from rewarddance.core.config import Precision, differing_keys
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import say
from rewarddance.core.task import Prompt
from rewarddance.data.parquet import RecordTable
from rewarddance.data.sources import SourcePicture, pictures_of
from rewarddance.data.text import normalised
from rewarddance.jobs.load import find, load_internvl, load_judge, weights_id
from rewarddance.reward.composite import Composite, Standard, load_standards, save_standards
from rewarddance.reward.composite_config import (
    ClipPartConfig,
    CompositeConfig,
    CompositionPartConfig,
    HarmonyPartConfig,
    JudgePartConfig,
    NoveltyPartConfig,
    PartConfig,
    fitted_folder,
    is_composite,
    load_composite_config,
    normalised_weights,
)
from rewarddance.reward.composition import composition
from rewarddance.reward.harmony import colour_harmony
from rewarddance.reward.novelty import NoveltyIndex
from rewarddance.reward.parts import JudgePart, Measure, MeasurePart, Part
from rewarddance.reward.remote import RemoteJudge, is_address
from rewarddance.reward.standardised import standard_of
from rewarddance.vlm.embedders import ClipEmbedder, holds_clip

PictureFeatures = Callable[[Sequence[Media]], Tensor]
BATCH = 64
"""Pictures in one call of an encoder."""


def load_composite(file: Path, **settings: Any) -> Composite:
    """A fitted composite. A message names the parts of its preset that are missing.

    Args:
        settings: of its judges, as `load_judge` takes them.

    Raises:
        ConfigError: a wrong file, a part that cannot be loaded, or a part whose settings or files (weights, pictures)
            changed after the fit or were not fitted.
    """
    config, folder = load_composite_config(file), fitted_folder(file)
    if not (folder / "standards.json").is_file():
        raise ConfigError(f"{file}: not fitted yet; run `rewarddance composite {file} --data FOLDER`")
    fitted, standards = load_standards(folder / "standards.json")
    again = "changed since the fit; run `rewarddance composite` again"
    if changed := [
        name
        for name, part in config.parts.items()
        if name not in standards or differing_keys(fitted["config"].get(name, {}), part)
    ]:
        raise ConfigError(f"{file}: {', '.join(changed)} {again}")
    files = {name: _files_of(name, part) for name, part in config.parts.items()}
    if changed := [name for name, hashes in files.items() if fitted["files"].get(name) != hashes]:
        raise ConfigError(f"{file}: the files of {', '.join(changed)} {again}")
    indices = {n: NoveltyIndex.load(folder / f"{n}.safetensors") for n in _novelty(config)}
    return _composite(config, build_parts(config, indices, **settings), standards, str(file))


def _composite(
    config: CompositeConfig, parts: dict[str, Part], standards: dict[str, Standard], source: str
) -> Composite:
    weights, missing = normalised_weights(config)
    if missing:
        say(f"{source}: no part {', '.join(missing)}; the other weights are renormalised")
    optional, bound = config.optional, config.bound
    return Composite(parts, standards, weights, missing, optional, bound, config.combine, config.std_weight)


def _files_of(name: str, part: PartConfig) -> dict[str, str]:
    """SHA-256 of the files that a part measures with: `model` (weights and settings), `gallery` and `reference`
    (pictures)."""
    if isinstance(part, JudgePartConfig) and is_address(part.judge):
        return {"model": RemoteJudge.connect(part.judge).info.weights}
    if isinstance(part, JudgePartConfig):
        return {"model": _model_id(find(part.judge, "judge"))}
    if isinstance(part, ClipPartConfig):
        gallery = {} if part.gallery is None else {"gallery": _contents(_set(name, part.gallery, part.style))}
        return {"model": _model_id(find(part.model, "vlm")), **gallery}
    if isinstance(part, NoveltyPartConfig):
        set_ = {} if part.reference is None else {"reference": _contents(_set(name, part.reference, part.style))}
        return {"model": _model_id(find(part.features, "vlm")), **set_}
    return {}


def _model_id(folder: Path) -> str:
    settings = _contents(SourcePicture(str(file), content=file) for file in sorted(folder.glob("*.json")))
    return hashlib.sha256((weights_id(folder) + settings).encode()).hexdigest()


def _contents(files: Iterable[SourcePicture]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.content.read_bytes() if isinstance(file.content, Path) else file.content or b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _novelty(config: CompositeConfig) -> dict[str, NoveltyPartConfig]:
    return {n: p for n, p in config.parts.items() if isinstance(p, NoveltyPartConfig)}


def fit_composite(
    file: Path, data: Path, *, max_records: int = 400, precision: Precision | None = None
) -> dict[str, Any]:
    """Measure how every part spreads on the pictures of a data folder, and fit novelty's index to them.

    Records are taken evenly from `train.parquet` (or the file itself). Novelty's index takes one half of them, and
    means and deviations are measured on the other half. No prompt and no picture is in both halves.

    Args:
        max_records: largest number of records that are measured.

    Returns:
        What was written to `standards.json`: mean and deviation by part, numbers of pictures, weights, missing parts.

    Raises:
        ConfigError: a wrong file, or a part that cannot be loaded.
        InputError: too few records, records that cannot be divided, or a part that gives one value for all pictures.
    """
    config, folder = load_composite_config(file), fitted_folder(file)
    table = RecordTable.open(data if data.is_file() else data / "train.parquet")
    index_records, spread_records = reference_halves(table, max_records)
    records_pictures = [m for r in index_records for m in r.media]
    indices, num_index = dict[str, NoveltyIndex](), dict[str, int]()
    for name, part in _novelty(config).items():
        pictures = records_pictures if part.reference is None else _opened(_set(name, part.reference, part.style))
        features = _batched(picture_features(part.features), pictures)
        indices[name] = NoveltyIndex.fit(features, part.method, part.neighbours)
        num_index[name] = len(features)
    parts = build_parts(config, indices, precision=precision)
    standards = {name: _standard(name, part, spread_records) for name, part in parts.items()}
    weights, missing = normalised_weights(config)
    folder.mkdir(parents=True, exist_ok=True)
    for name, index in indices.items():
        index.save(folder / f"{name}.safetensors")
    facts = {
        "num_pictures": sum(len(r.media) for r in spread_records),
        "num_index_pictures": num_index,
        "config": {name: part.model_dump(mode="json") for name, part in config.parts.items()},
        "files": {name: _files_of(name, part) for name, part in config.parts.items()},
    }
    save_standards(folder / "standards.json", standards, facts)
    return {
        "written": str(folder),
        "num_pictures": facts["num_pictures"],
        "weights": weights,
        "missing": list(missing),
        "standards": {name: vars(s) for name, s in standards.items()},
    }


def reference_halves(table: RecordTable, max_records: int) -> tuple[list[PreferenceRecord], list[PreferenceRecord]]:
    """Records for novelty's index, and records for means and deviations. No prompt and no picture is in both.

    Pictures of one prompt count once, however many criteria or votes they have. Records that share a prompt or a
    picture stay together; these groups go to the two halves in turn.

    Raises:
        InputError: fewer than four records, or all of them share prompts or pictures.
    """
    first: dict[Any, int] = {}
    for i, key in enumerate(table.contents):
        first.setdefault(key, i)
    records = [table[i] for i in list(first.values())[:: max(1, -(-len(first) // max_records))]]
    if len(records) < 4:
        raise InputError(f"{table.name}: {len(records)} records are too few to fit a composite; 4 are the least")
    marks: dict[str, int] = {}
    edges = []
    for row, record in enumerate(records):
        for mark in (f"prompt {normalised(record.prompt)}", *(f"picture {m.key}" for m in record.media)):
            edges.append((row, marks.setdefault(mark, len(marks))))
    rows, columns = zip(*edges, strict=True)
    num = len(records) + len(marks)
    places = [len(records) + column for column in columns]
    _, labels = connected_components(coo_array((np.ones(len(edges)), (rows, places)), shape=(num, num)), directed=False)
    groups = {label: i for i, label in enumerate(dict.fromkeys(labels[: len(records)].tolist()))}
    if len(groups) < 2:
        raise InputError(f"{table.name}: all records share prompts or pictures; a composite needs two that do not")
    halves: tuple[list[PreferenceRecord], list[PreferenceRecord]] = ([], [])
    for record, label in zip(records, labels.tolist(), strict=False):
        halves[groups[label] % 2].append(record)
    return halves


def _standard(name: str, part: Part, records: Sequence[PreferenceRecord]) -> Standard:
    prompts = [Prompt(r.prompt, condition=r.condition) for r in records]
    return standard_of(name, lambda asked: part.values(asked).values, prompts, [r.media for r in records])


def build_parts(config: CompositeConfig, indices: dict[str, NoveltyIndex], **settings: Any) -> dict[str, Part]:
    """The parts of a configuration, ready to measure.

    Raises:
        ConfigError: a part that cannot be loaded.
    """
    out: dict[str, Part] = {}
    for name, part in config.parts.items():
        if isinstance(part, JudgePartConfig):
            if is_composite(part.judge):
                raise ConfigError(f"part {name}: a composite cannot be a part of another one")
            judge = load_judge(part.judge, **settings)
            assert not isinstance(judge, Composite)
            out[name] = JudgePart(judge, part.criterion)
        elif isinstance(part, ClipPartConfig):
            out[name] = MeasurePart(_clip_measure(name, part))
        elif isinstance(part, CompositionPartConfig):
            out[name] = MeasurePart(_composition_measure(part))
        elif isinstance(part, HarmonyPartConfig):
            out[name] = MeasurePart(lambda prompts, media: colour_harmony(media))
        else:
            out[name] = MeasurePart(_novelty_measure(picture_features(part.features), indices[name]))
    return out


def _composition_measure(part: CompositionPartConfig) -> Measure:
    weights = part.model_dump(exclude={"kind"})
    if not any(weights.values()):
        raise ConfigError("composition: the weights of all rules are 0")
    return lambda prompts, media: composition(media, weights)


def _novelty_measure(features: PictureFeatures, index: NoveltyIndex) -> Measure:
    return lambda prompts, media: index.distance(features(media))


def _clip_measure(name: str, part: ClipPartConfig) -> Measure:
    """Cosine of pictures to their prompts, to one text, or (mean) to the pictures of a gallery."""
    if part.text is not None and part.gallery is not None:
        raise ConfigError(f"part {name}: give a text or a gallery, not both")
    clip = ClipEmbedder.load(find(part.model, "vlm"))
    if part.gallery is None:
        return lambda prompts, media: (
            clip(media) * clip.texts([part.text] * len(media) if part.text is not None else prompts)
        ).sum(1)
    centre = _batched(clip, _opened(_set(name, part.gallery, part.style))).mean(0)
    return lambda prompts, media: clip(media) @ centre


def _set(name: str, source: str, style: str | None) -> Iterator[SourcePicture]:
    """The pictures of a set.

    Raises:
        ConfigError: there are none.
    """
    pictures = pictures_of(Path(source), style)
    first = next(pictures, None)
    if first is None:
        raise ConfigError(f"part {name}: no pictures in {source}" + ("" if style is None else f" of style {style!r}"))
    return chain([first], pictures)


def _opened(pictures: Iterable[SourcePicture]) -> Iterator[Media]:
    return (p.media() for p in pictures)


@torch.no_grad()
def _batched(features: PictureFeatures, media: Iterable[Media]) -> Tensor:
    remaining, out = iter(media), []
    while batch := list(islice(remaining, BATCH)):
        out.append(features(batch))
    return torch.cat(out)


def picture_features(name: str) -> PictureFeatures:
    """Differentiable features of pictures, (N, D): CLIP's if the folder holds a CLIP model, else the mean states of an
    InternVL's vision tower.

    Raises:
        ConfigError: neither can be loaded.
    """
    folder = find(name, "vlm")
    if holds_clip(folder):
        return ClipEmbedder.load(folder)
    backbone = load_internvl(folder)
    backbone.module.requires_grad_(False)
    return backbone.mean_states
