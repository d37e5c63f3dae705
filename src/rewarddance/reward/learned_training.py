"""Trains a learned reward on ratings. Embeddings are frozen, so each picture is embedded once and then kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.errors import InputError
from rewarddance.core.loop import Metrics
from rewarddance.core.media import Media
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.reward.learned import LearnedJudge, rating_loss
from rewarddance.reward.learned_config import SCALAR_COLUMN, LearnedConfig

KEEP_BYTES = 2 << 30
"""Bytes of embeddings that are kept in memory. Pictures that do not fit are embedded again at every use."""
Array = NDArray[np.float64]
Key = tuple[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class RatedPictures:
    """The pictures of one prompt with their ratings.

    Attributes:
        key: prompt and hashes of the pictures.
        row: a row of the table that has the pictures.
        ratings: (pictures, columns), NaN where there is none.
    """

    key: Key
    row: int
    ratings: Array

    @property
    def prompt(self) -> str:
        return self.key[0]


@dataclass(frozen=True)
class RatedSet:
    """Rated pictures by prompt. Records of the same pictures with different criteria are one entry.

    Attributes:
        columns: the criteria in alphabetical order, and the overall rating as the last column. If nobody gave an
            overall rating, it is the mean over the criteria.
        num_unrated: records without ratings, which are left out.
    """

    table: RecordTable
    columns: tuple[str, ...]
    entries: tuple[RatedPictures, ...]
    num_unrated: int = 0

    @classmethod
    def of(cls, table: RecordTable, columns: Sequence[str] | None = None) -> RatedSet:
        """The ratings of a table. No picture is decoded.

        Args:
            columns: those of a training set, for data that is measured; other criteria are left out.

        Raises:
            InputError: there are no ratings.
        """
        criteria, ratings = table.criteria, table.ratings
        rated = [i for i, r in enumerate(ratings) if r is not None]
        if not rated:
            raise InputError(
                f"{table.name}: no ratings, and a learned reward learns from them; `data build --criterion each`, "
                "`annotate --task rating`, or an import of ratings gives some"
            )
        if columns is None:
            names = dict.fromkeys(criteria[i] for i in rated)
            columns = (*sorted(names.keys() - {SCALAR_COLUMN}), SCALAR_COLUMN)
        place = {name: k for k, name in enumerate(columns)}
        rows: dict[Key, int] = {}
        sums: dict[Key, Array] = {}
        counts: dict[Key, Array] = {}
        contents = table.contents
        for i in rated:
            given = ratings[i]
            assert given is not None
            key = contents[i]
            rows.setdefault(key, i)
            total = sums.setdefault(key, np.zeros((len(given), len(columns))))
            count = counts.setdefault(key, np.zeros(len(columns)))
            if criteria[i] in place:
                total[:, place[criteria[i]]] += given
                count[place[criteria[i]]] += 1
        entries = tuple(RatedPictures(key, rows[key], _with_overall(_means(sums[key], counts[key]))) for key in rows)
        return cls(table, tuple(columns), entries, len(ratings) - len(rated))

    def pictures(self, entry: RatedPictures) -> tuple[Media, ...]:
        return self.table[entry.row].media

    def __len__(self) -> int:
        return len(self.entries)


def _means(sums: Array, counts: Array) -> Array:
    """Mean ratings (K, C) from their sums and numbers (C,), NaN where there are none."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _with_overall(ratings: Array) -> Array:
    """Fill gaps in the last column with the mean of the other columns."""
    known = np.isfinite(ratings[:, :-1])
    mean = np.where(known, ratings[:, :-1], 0.0).sum(1) / np.maximum(known.sum(1), 1)
    fill = np.isnan(ratings[:, -1]) & known.any(1)
    ratings[fill, -1] = mean[fill]
    return ratings


@dataclass
class Embeddings:
    """Tokens of pictures as fp16, kept up to `keep_bytes`. Several trainings with one embedder may share them."""

    keep_bytes: int = KEEP_BYTES
    kept: dict[Key, Tensor] = field(default_factory=dict)
    num_bytes: int = 0

    @torch.no_grad()
    def of(self, judge: LearnedJudge, rated: RatedSet, entry: RatedPictures) -> Tensor:
        """(pictures, P, C) fp16. The values do not depend on what is kept."""
        if entry.key in self.kept:
            return self.kept[entry.key]
        tokens = judge.embedder.pictures(rated.pictures(entry)).half()
        if self.num_bytes + tokens.nbytes <= self.keep_bytes:
            self.kept[entry.key] = tokens
            self.num_bytes += tokens.nbytes
        return tokens


@dataclass
class LearnedTraining:
    """Steps and validations of one training."""

    config: LearnedConfig
    judge: LearnedJudge
    train: RatedSet
    embeddings: Embeddings

    def batch(self, index: int) -> list[RatedPictures]:
        """The entries of one step: a pure function of the seed and the step, so that a resumed run gets the same."""
        entries, size = self.train.entries, self.config.prompts_per_step
        per_epoch = max(1, len(entries) // size)
        epoch, place = divmod(index, per_epoch)
        order = stream(self.config.seed, "epoch", epoch).permutation(len(entries))
        return [entries[int(i)] for i in order[place * size : (place + 1) * size]]

    def step(self, index: int) -> Metrics:
        batch = self.batch(index)
        outputs = self.outputs(self.train, batch)
        ratings = torch.tensor(np.concatenate([e.ratings for e in batch]), dtype=torch.float32, device=outputs.device)
        sizes = torch.tensor([len(e.ratings) for e in batch], device=outputs.device)
        groups = torch.arange(len(batch), device=outputs.device).repeat_interleave(sizes)
        metrics = rating_loss(outputs, ratings, groups, self.config.loss, self.config.criteria_weight)
        metrics["loss"].backward()  # type: ignore[no-untyped-call]
        return {k: v.detach() for k, v in metrics.items()}

    def outputs(self, rated: RatedSet, batch: Sequence[RatedPictures]) -> Tensor:
        """Outputs of all heads for the pictures of some prompts, one after another, (N, K)."""
        pictures = [self.embeddings.of(self.judge, rated, e) for e in batch]
        words, padding = self.judge.embedder.words([e.prompt for e in batch])
        repeats = torch.tensor([len(p) for p in pictures], device=words.device)
        return self.judge.module(  # type: ignore[no-any-return]
            torch.cat(pictures).float(), words.repeat_interleave(repeats, 0), padding.repeat_interleave(repeats, 0)
        )

    @torch.no_grad()
    def all_outputs(self, rated: RatedSet, size: int = 16) -> list[Array]:
        """Outputs of all heads for every entry, (pictures, K) each."""
        was_training = self.judge.module.training
        self.judge.module.eval()
        out: list[Array] = []
        for i in range(0, len(rated), size):
            part = rated.entries[i : i + size]
            rows = self.outputs(rated, part).double().cpu().numpy()
            out += np.split(rows, np.cumsum([len(e.ratings) for e in part])[:-1])
        self.judge.module.train(was_training)
        return out


def usable(judge: LearnedJudge, rated: RatedSet) -> tuple[RatedSet, int]:
    """The entries whose prompts the judge can read, and how many are left out."""
    limit = min(judge.spec.shape.max_words, judge.embedder.most_words)
    kept = tuple(e for e in rated.entries if 0 < judge.embedder.num_words(e.prompt) <= limit)
    if not kept:
        raise InputError(f"{rated.table.name}: no prompt has between 1 and {limit} tokens")
    return RatedSet(rated.table, rated.columns, kept, rated.num_unrated), len(rated) - len(kept)
