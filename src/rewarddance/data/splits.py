"""`data split`: which records are for training and which are held out, and k folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.streams import stream
from rewarddance.data.folder import describe_folder, splits_of
from rewarddance.data.names import SplitBy
from rewarddance.data.parquet import stored_rows, voted_records
from rewarddance.data.schema import row_of_votes, voted
from rewarddance.data.shards import write_shards
from rewarddance.data.text import normalised
from rewarddance.data.votes import VotedRecord


def keys_of(record: VotedRecord, by: SplitBy) -> tuple[str, ...]:
    """The keys of a record: its prompt (normalised), its group, its models, or its annotators. () if it has none."""
    if by == "prompt":
        return (normalised(record.prompt),)
    if by == "model":
        return tuple(sorted({m.model for m in record.candidates if m.model}))
    if by == "annotator":
        return tuple(sorted({v.annotator for v in record.votes if v.annotator}))
    value = record.source if by == "source" else record.groups.get(by)
    return (value,) if value else ()


def hold_out(keys: Sequence[Collection[str]], share: float, seed: int, by: str = "") -> frozenset[str]:
    """Keys to hold out, so that about `share` of the records have one of them. Never none, and never all.

    Keys are tried in random order; a key that would go far beyond the share is skipped while smaller ones are left.

    Args:
        keys: the keys of every record.

    Raises:
        InputError: fewer than two keys.
    """
    sizes = Counter(k for own in keys for k in own)
    names = sorted(sizes)
    if len(names) < 2:
        held = f"only {names[0]!r}" if names else "none"
        raise InputError(f"cannot split by {by or 'key'}: needs two different values, and there is {held}")
    order = [names[int(i)] for i in stream(seed, "split", by).permutation(len(names))]
    target = share * len(keys)
    taken: set[str] = set()
    total = 0
    for name in order:
        if len(taken) == len(names) - 1:
            break
        if abs(total + sizes[name] - target) < abs(total - target):
            taken.add(name)
            total += sizes[name]
    return frozenset(taken or {min(order, key=lambda n: (sizes[n], order.index(n)))})


def fold_of(sizes: Mapping[str, int], num: int, seed: int, by: str = "") -> dict[str, int]:
    """The fold of every key: the largest keys first, each into the fold with the fewest records.

    Raises:
        InputError: fewer keys than folds.
    """
    if len(sizes) < num:
        raise InputError(f"{num} folds by {by or 'key'} need as many different values, and there are {len(sizes)}")
    names = sorted(sizes)
    order = [names[int(i)] for i in stream(seed, "folds", by).permutation(len(names))]
    filled = [0] * num
    folds = {}
    for name in sorted(order, key=lambda n: -sizes[n]):
        folds[name] = filled.index(min(filled))
        filled[folds[name]] += sizes[name]
    return folds


def part_of(record: VotedRecord, by: SplitBy, held: Collection[str], inside: bool) -> VotedRecord | None:
    """The rest of a record in the held-out part (`inside`) or in training; None if nothing is left.

    By annotator the votes are divided: a record can be in both parts, with different votes. By model a record is held
    out if any of its candidates is of a held-out model. Records without a key are for training.
    """
    if by == "annotator":
        votes = tuple(v for v in record.votes if (v.annotator in held) == inside)
        return replace(record, votes=votes) if votes else None
    touched = any(k in held for k in keys_of(record, by))
    return record if touched == inside else None


def part_rows(
    rows: Iterable[dict[str, Any]], by: SplitBy, held: Collection[str], inside: bool
) -> Iterator[dict[str, Any]]:
    """The rows of one part. A row that keeps all its votes stays as it is."""
    for row in rows:
        record = voted(row)
        part = part_of(record, by, held, inside)
        if part is not None:
            yield row if part.votes == record.votes else row_of_votes(part)


def split_data(
    data: Path,
    out: Path,
    by: SplitBy = "prompt",
    share: float = 0.1,
    seed: int = 0,
    folds: int | None = None,
    held_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Divide the training records of `data` into `out/train.parquet` and `out/id.parquet` (prompts) or `ood.parquet`.

    With `folds`, `out/fold-1` and so on are data folders, each with another part held out. Each folder holds all
    records.

    Args:
        share: of the records, to hold out.
        held_out: values to hold out by name, in place of a share.

    Raises:
        InputError: too few different values, an unknown name in `held_out`, or a part without records.
    """
    source = splits_of(data).get("train") or data
    keys = [keys_of(r, by) for r in voted_records(source, pictures=False)]
    sizes = Counter(k for own in keys for k in own)
    named = [normalised(n) if by == "prompt" else n for n in held_out]
    unknown = [n for n in named if n not in sizes]
    if unknown:
        raise InputError(f"--hold-out {unknown[0]!r}: no such {by}; there are {', '.join(sorted(sizes)[:10])}")
    facts: dict[str, Any] = {"by": by, "seed": seed, "from": data.name}
    if folds is None:
        held = frozenset(named) or hold_out(keys, share, seed, by)
        return _write(source, out, by, held, facts)
    places = fold_of(sizes, folds, seed, by)
    made = {}
    for fold in range(folds):
        held = frozenset(k for k, place in places.items() if place == fold)
        made[f"fold-{fold + 1}"] = _write(source, out / f"fold-{fold + 1}", by, held, facts | {"fold": fold + 1})
    return made


def _write(source: Path, out: Path, by: SplitBy, held: frozenset[str], facts: dict[str, Any]) -> dict[str, Any]:
    names = {False: "train", True: "id" if by == "prompt" else "ood"}
    if (out / "train.parquet").resolve() == source.resolve():
        raise InputError(f"{out}: is the folder that is split; name another --out")
    numbers = {}
    for inside, name in names.items():
        numbers[name] = 0

        def rows(inside: bool = inside, name: str = name) -> Iterator[dict[str, Any]]:
            for row in part_rows(stored_rows(source), by, held, inside):
                numbers[name] += 1
                yield row

        out.mkdir(parents=True, exist_ok=True)
        write_shards(rows(), out / f"{name}.parquet")
        if not numbers[name]:
            raise InputError(f"{out}: no record is left for {name}; choose another --by or another value to hold out")
    listed = sorted(held)
    describe_folder(out, {"split": facts | {"held_out": listed if len(listed) <= 1000 else len(listed)}})
    return {**numbers, "held_out": listed if len(listed) <= 20 else len(listed)}
