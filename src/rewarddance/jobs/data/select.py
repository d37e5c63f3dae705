"""`rewarddance data select`: asks judges about pairs that nobody has judged yet, and chooses which to label next."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from torch.nn.functional import adaptive_avg_pool2d

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.pictures import open_image
from rewarddance.core.preferences import all_pairs
from rewarddance.core.progress import progress
from rewarddance.core.runs import write_json
from rewarddance.core.streams import seed_of
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.data.acquire import select
from rewarddance.data.derive import pairwise, whole_ratings
from rewarddance.data.folder import describe_folder, splits_of
from rewarddance.data.names import Strategy
from rewarddance.data.parquet import voted_records
from rewarddance.data.schema import row_of_votes, stored_name
from rewarddance.data.shards import split_files, write_shards
from rewarddance.data.text import normalised
from rewarddance.data.votes import MediaRef, VotedRecord

Array = NDArray[np.float64]
CHUNK = 64
"""Records that are asked about at once."""
WORDS, PIXELS = 64, 4
"""Features of a pair: a hashed bag of its prompt's words, and both pictures at `PIXELS` x `PIXELS`."""


@dataclass(frozen=True)
class Pair:
    """Two candidates of one record that nobody has compared by the criterion."""

    record: VotedRecord
    first: int
    second: int

    @property
    def name(self) -> str:
        """The id of a record of this pair alone."""
        return f"{self.record.record_id}/{self.first}-{self.second}"

    @property
    def media(self) -> tuple[MediaRef, MediaRef]:
        return self.record.candidates[self.first], self.record.candidates[self.second]


def open_pairs(record: VotedRecord, criterion: str) -> list[Pair]:
    """The pairs of a record that have no vote by a criterion."""
    votes = whole_ratings([v for v in record.votes if v.criterion == criterion])
    judged = {frozenset(single.media) for vote in votes for single in pairwise(vote)}
    num = len(record.candidates)
    return [Pair(record, i, j) for i, j in all_pairs(num) if frozenset((i, j)) not in judged]


@torch.no_grad()
def ask(judge: RewardModel, pairs: Sequence[Pair], criterion: str | None) -> Array:
    """(N,) P(first is better), from the mean margin of both orders; NaN where the judge refused.

    The judge sees the first frame of image-to-video, as in training.
    """
    opened: dict[str, Media] = {}
    forward = []
    for pair in pairs:
        a, b = (_opened(m, opened) for m in pair.media)
        conditions = pair.record.conditions if pair.media[0].kind == "video" else ()
        first = _opened(conditions[0], opened) if len(conditions) == 1 else None
        forward.append(Comparison(pair.record.prompt, a, b, criterion, condition=first))
    margins = judge.judge([*forward, *(c.swapped() for c in forward)]).margin.double().cpu().numpy()
    return np.asarray(expit((margins[: len(pairs)] - margins[len(pairs) :]) / 2))


def _opened(ref: MediaRef, opened: dict[str, Media]) -> Media:
    key = ref.sha256 or ""
    if key not in opened:
        how = Media.open if ref.kind == "video" else Media.open_picture
        opened[key] = how(io.BytesIO(ref.data or b""), origin=ref.path)
    return opened[key]


def features(pairs: Sequence[Pair]) -> Array:
    """(N, WORDS + 6 PIXELS^2) cheap features for `coverage`: words of the prompt and small copies of the pictures. Of a
    clip it is the mean of all frames.
    """
    made = np.zeros((len(pairs), WORDS + 6 * PIXELS**2))
    small: dict[str, Array] = {}
    for row, pair in zip(made, pairs, strict=True):
        words = normalised(pair.record.prompt).split()
        for word in words:
            row[seed_of(0, word) % WORDS] += 1 / max(1, len(words)) ** 0.5
        row[WORDS:] = np.concatenate([_small(m, small) for m in pair.media])
    return made


def _small(ref: MediaRef, small: dict[str, Array]) -> Array:
    key = ref.sha256 or ""
    if key not in small and ref.kind == "video":
        mean = Media.open(io.BytesIO(ref.data or b""), origin=ref.path).frames.mean(0)
        pixels = adaptive_avg_pool2d(mean, PIXELS).permute(1, 2, 0).double().numpy()
        small[key] = pixels.ravel() / PIXELS
    if key not in small:
        with open_image(io.BytesIO(ref.data or b"")) as image:
            pixels = np.asarray(image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX), np.float64)
        small[key] = pixels.ravel() / 255 / PIXELS
    return small[key]


def select_pairs(
    data: Path,
    judges: Mapping[str, RewardModel],
    out: Path,
    budget: int,
    strategy: Strategy = "mixed",
    criterion: str = "overall",
    most_per_prompt: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the `budget` pairs that should be labelled next: to `out/train.parquet`, which `annotate` takes, and to
    `out/pairs.jsonl` with the pictures in `out/media`.

    `data import` reads the rows of `pairs.jsonl`, with a `label` that was filled in or without. A row also holds the
    P(first is better) of every judge. The records of `train.parquet` are pairs without votes, the most wanted first.

    Args:
        judges: by name; `disagreement` needs two or more, `coverage` and `random` none.

    Raises:
        InputError: no open pairs, the strategy lacks judges, or `out` holds other data.
    """
    check_judges(strategy, len(judges))
    _check_out(out)
    source = splits_of(data).get("train") or data
    with progress("records") as bar:
        records = _counted(voted_records(source), bar)
        asked = ask_all(records, lambda r: open_pairs(r, criterion), judges, criterion, strategy)
    if not asked.pairs:
        why = f"; {asked.left_out} records are of clips, which this command does not open" if asked.left_out else ""
        raise InputError(f"{source}: every pair has votes by {criterion} already{why}")
    pairs, beliefs = asked.pairs, asked.beliefs
    out.mkdir(parents=True, exist_ok=True)
    row_of_name = {pairs[i].name: i for i in asked.most_wanted(strategy, budget, most_per_prompt, seed)}
    files = _store(source, {pairs[i].record.record_id for i in row_of_name.values()}, out)
    lines = []
    for pair_name, i in row_of_name.items():
        a, b = pairs[i].media
        row: dict[str, Any] = {"id": pair_name, "prompt": pairs[i].record.prompt, "criterion": criterion}
        row |= {"image_a": files[a.sha256 or ""], "image_b": files[b.sha256 or ""], "label": None}
        row |= {"model_a": a.model, "model_b": b.model}
        lines.append(row | {"judges": {name: float(p) for name, p in zip(judges, beliefs[:, i], strict=False)}})
    write_shards(
        map(row_of_votes, _records([pairs[i] for i in row_of_name.values()], files, out)), out / "train.parquet"
    )
    describe_folder(out, {"selected": {"from": str(source), "strategy": strategy, "criterion": criterion}})
    target = out / "pairs.jsonl"
    target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    refused = int((~np.isfinite(beliefs)).any(0).sum())
    figures = {
        "open_pairs": len(pairs),
        "chosen": len(lines),
        "refused_by_a_judge": refused,
        "strategy": strategy,
        "judges": list(judges),
    }
    write_json(out / "select.json", figures)
    return {"file": str(target), **figures}


def _check_out(out: Path) -> None:
    """Refuse a folder with data that `data select` did not write, because its `train.parquet` would be replaced."""
    manifest = out / "manifest.json"
    is_selection = manifest.is_file() and "selected" in json.loads(manifest.read_text())
    if split_files(out / "train.parquet") and not is_selection:
        raise InputError(f"{out}: holds other data; choose another --out")


def judges_needed(strategy: Strategy) -> int:
    """The smallest number of judges that a strategy needs; 0 for one that asks none."""
    return {"disagreement": 2, "uncertainty": 1, "mixed": 1}.get(strategy, 0)


def check_judges(strategy: Strategy, num: int) -> None:
    """Check that there are enough judges for a strategy.

    Raises:
        InputError: too few.
    """
    if num < (needed := judges_needed(strategy)):
        raise InputError(f"{strategy} needs {needed} judges or more; name them with --judges")


@dataclass(frozen=True)
class Asked:
    """The judges' answers about pairs.

    Attributes:
        pairs: the pairs, without their files. beliefs: (J, N) P(first is better) by judge and pair. vectors: (N, D)
            features where the strategy needs them. left_out: number of records of clips that were not opened.
    """

    pairs: list[Pair]
    beliefs: Array
    vectors: Array
    left_out: int

    def most_wanted(self, strategy: Strategy, budget: int, most_per_prompt: int, seed: int = 0) -> list[int]:
        """Indices of the pairs to label next, the most useful first."""
        groups = [normalised(p.record.prompt) for p in self.pairs]
        return select(strategy, self.beliefs, budget, self.vectors, groups, most_per_prompt, seed)


def ask_all(
    records: Iterator[VotedRecord],
    pairs_of: Callable[[VotedRecord], list[Pair]],
    judges: Mapping[str, RewardModel],
    criterion: str,
    strategy: Strategy,
    clips: bool = False,
) -> Asked:
    """Ask all judges about the pairs that `pairs_of` names in each record.

    Args:
        clips: also open records of clips, which hold the files of their clips.
    """
    pairs: list[Pair] = []
    beliefs, vectors = [np.zeros((max(1, len(judges)), 0))], [np.zeros((0, WORDS + 6 * PIXELS**2))]
    left_out = 0
    for part in _chunks(records, CHUNK):
        opened = [r for r in part if clips or not _has_clips(r)]
        left_out += len(part) - len(opened)
        asked = [p for record in opened for p in pairs_of(record)]
        if asked:
            beliefs.append(np.stack([ask(j, asked, criterion) for j in judges.values()] or [np.zeros(len(asked))]))
            if strategy in ("coverage", "mixed"):
                vectors.append(features(asked))
            pairs += [Pair(_light(p.record), p.first, p.second) for p in asked]
    return Asked(pairs, np.concatenate(beliefs, 1), np.concatenate(vectors), left_out)


def _counted(records: Iterator[VotedRecord], bar: Callable[[int, int], None]) -> Iterator[VotedRecord]:
    for number, record in enumerate(records):
        bar(number, number + 1)
        yield record


def _has_clips(record: VotedRecord) -> bool:
    return any(m.kind == "video" for m in record.candidates)


def _chunks(records: Iterator[VotedRecord], size: int) -> Iterator[list[VotedRecord]]:
    """At most `size` records at once. Records of clips come one by one, because a clip is as large as many pictures."""
    for clips, group in groupby(records, _has_clips):
        while part := list(islice(group, 1 if clips else size)):
            yield part


def _light(record: VotedRecord) -> VotedRecord:
    """The record without the files of its pictures."""
    return replace(record, media=tuple(replace(m, data=None) for m in record.media))


def _store(source: Path, record_ids: set[str], out: Path) -> dict[str, str]:
    """Write the pictures of some records, conditions too; their paths by content."""
    files: dict[str, str] = {}
    (out / "media").mkdir(exist_ok=True)
    for record in voted_records(source):
        for ref in record.media if record.record_id in record_ids else ():
            if ref.sha256 and ref.data is not None and ref.sha256 not in files:
                files[ref.sha256] = f"media/{stored_name(ref)}"
                (out / files[ref.sha256]).write_bytes(ref.data)
    return files


def _records(pairs: Sequence[Pair], files: Mapping[str, str], out: Path) -> Iterator[VotedRecord]:
    """Each pair as a record of its own, without votes, with the pictures that `_store` wrote."""
    for pair in pairs:
        record = pair.record
        media = [replace(m, data=_content(m, files, out)) for m in (*pair.media, *record.conditions)]
        truth = None if record.truth is None else (record.truth[pair.first], record.truth[pair.second])
        yield replace(record, record_id=pair.name, media=tuple(media), votes=(), truth=truth)


def _content(ref: MediaRef, files: Mapping[str, str], out: Path) -> bytes | None:
    name = files.get(ref.sha256 or "")
    return None if name is None else (out / name).read_bytes()
