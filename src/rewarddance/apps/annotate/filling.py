"""Puts the records of a data folder into a desk's database. It may be called again: new records are added."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.assignment import groups_of
from rewarddance.apps.annotate.clips import shape_of, shuffled_clip
from rewarddance.apps.annotate.config import CHANGEABLE, MAX_RANKED, DeskConfig
from rewarddance.apps.annotate.database import Database, lock_desk
from rewarddance.apps.annotate.media import noise_of, size_of
from rewarddance.apps.annotate.models import Desk, Item, Picture, Record
from rewarddance.core.clips import need_pyav
from rewarddance.core.errors import InputError, RunError
from rewarddance.core.pictures import unreadable
from rewarddance.core.streams import seed_of

if TYPE_CHECKING:
    from rewarddance.data.votes import MediaRef, VotedRecord

CHECKS_AT_LEAST = 10
"""Number of checks that are made (if there are so many records), because nobody sees a check twice."""


@dataclass
class Filled:
    """The result of `fill`: new records and items, records that had nothing to judge, and settings that changed
    (name -> before and now)."""

    records: int = 0
    items: int = 0
    checks: int = 0
    passed_over: int = 0
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def stamp_of(data: Path) -> list[Any]:
    """Name, size and time of the Parquet files of a data folder."""
    files = [data] if data.is_file() else sorted(data.glob("*.parquet"))
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def configure(session: Session, config: DeskConfig, given: AbstractSet[str]) -> tuple[Desk, dict[str, tuple[Any, Any]]]:
    """Write the settings of a new desk, or change those of an old one that were given and are `CHANGEABLE`.

    Args:
        given: names of the settings that somebody stated. An old desk keeps its values of all others.

    Returns:
        The desk, and the settings that changed: name -> before and now.

    Raises:
        RunError: another setting that was given differs from what the desk was made with.
    """
    desk = session.scalar(select(Desk).limit(1).with_for_update())
    values = config.model_dump(mode="json")
    changed: dict[str, tuple[Any, Any]] = {}
    if desk is None:
        desk = Desk(id=1, settings=values, source=[], created=time.time())
        session.add(desk)
    else:
        before = settings_of(session).model_dump(mode="json")
        changed = {name: (before[name], values[name]) for name in sorted(given) if before[name] != values[name]}
        fixed = [name for name in changed if name not in CHANGEABLE]
        if fixed:
            raise RunError(f"the desk was made with other settings ({', '.join(fixed)}); name another --database")
        desk.settings = before | {name: now for name, (_, now) in changed.items()}
    session.flush()
    return desk, changed


def settings_of(session: Session) -> DeskConfig:
    """The settings of a desk.

    Raises:
        RunError: the database holds none.
    """
    desk = session.scalar(select(Desk).limit(1))
    if desk is None:
        raise RunError("this database holds no desk yet; `rewarddance annotate DATA --database URL` makes one")
    return DeskConfig.model_validate(desk.settings)


def fill(
    database: Database,
    folder: Path,
    config: DeskConfig,
    report: Callable[[int], None] = lambda n: None,
    given: AbstractSet[str] | None = None,
) -> Filled:
    """Add the records of a folder that the desk does not have, with their items and checks.

    Args:
        config: settings of a new desk.
        given: names of the settings that an old desk takes from `config`; the fields that were set when None.

    Raises:
        InputError: a record is there already with other pictures, nothing can be judged, a clip is missing or damaged,
            or there are clips and PyAV is missing.
        RunError: the desk was made with other settings.
    """
    filled, stamp = Filled(), stamp_of(folder)
    with database.write() as session:
        desk, filled.changed = configure(session, config, config.model_fields_set if given is None else given)
        config = settings_of(session)
        lock_desk(session)
        if any("clips" in facts for facts in session.scalars(select(Record.facts))):
            need_pyav("annotate")
        if stamp and desk.source == stamp:
            return filled
        desk.source = stamp
        known = {r.name: [m["sha256"] for m in r.media] for r in session.scalars(select(Record))}
        num_checks = int(session.scalar(select(func.count()).where(Item.noise.is_not(None))) or 0)
        for number, record in enumerate(_records(folder)):
            report(number)
            if record.record_id in known:
                if known[record.record_id] != [m.sha256 for m in record.media]:
                    raise InputError(f"record {record.record_id}: the desk has it with other pictures")
                continue
            record = with_clips(record, folder)
            if _add(session, record, config, num_checks + filled.checks, filled):
                known[record.record_id] = [m.sha256 for m in record.media]
        if not known:
            raise InputError(f"{folder}: no record has pictures to judge")
    return filled


def _records(folder: Path) -> Iterator[VotedRecord]:
    from rewarddance.data.folder import splits_of
    from rewarddance.data.parquet import voted_records

    splits = splits_of(folder)
    return voted_records(splits.get("train") or next(iter(splits.values())))


def with_clips(record: VotedRecord, data: Path) -> VotedRecord:
    """The record with the files of its clips. Links and clips that are given as single frames stay as they are.

    A clip lies in the data folder, or in the folder `--media-root` of the import that made the data.

    Raises:
        InputError: a clip is in neither, or its file is not the one that was imported.
    """
    from rewarddance.data.loading import is_link
    from rewarddance.data.schema import hash_of

    if all(m.kind != "video" or m.data is not None for m in record.media):
        return record
    folder = data if data.is_dir() else data.parent
    manifest = folder / "manifest.json"
    imported = json.loads(manifest.read_text()).get("imported") if manifest.is_file() else None
    roots = [folder, *([Path(imported["media_root"])] if imported else [])]
    media = []
    for ref in record.media:
        if ref.kind == "video" and ref.data is None and ref.path and not is_link(ref.path):
            origin = f"record {record.record_id}: {ref.path}"
            file = _found(roots, ref.path)
            if file is None:
                raise InputError(f"{origin}: no such clip in {' or '.join(map(str, roots))}")
            ref = replace(ref, data=file.read_bytes())
            if ref.sha256 != hash_of(ref.data or b""):
                raise InputError(f"{origin}: the clip has changed since the import; import it again")
        media.append(ref)
    return replace(record, media=tuple(media))


def _found(roots: Sequence[Path], path: str) -> Path | None:
    """The file of this path in the first folder that has it."""
    from rewarddance.data.loading import inside

    for root in roots:
        try:
            file = inside(root, path)
        except InputError:  # an absolute path that lies in another of the folders
            continue
        if file.is_file():
            return file
    return None


def _add(session: Session, record: VotedRecord, config: DeskConfig, num_checks: int, filled: Filled) -> bool:
    from rewarddance.data.schema import media_row

    seed = seed_of(config.seed, "pairs", record.record_id)
    groups = groups_of(len(record.candidates), config, random.Random(seed))
    groups = [g for g in groups if _comparable(record, g)]
    if config.task == "ranking" and len(record.candidates) > MAX_RANKED:
        raise InputError(f"record {record.record_id}: {len(record.candidates)} pictures; rank at most {MAX_RANKED}")
    if not groups:
        filled.passed_over += 1
        return False
    facts: dict[str, Any] = {
        "source": record.source,
        "groups": dict(record.groups),
        "truth": record.truth and list(record.truth),
    }
    clips = [_clip_shape(record, m) for m in record.candidates]
    if any(clips):
        facts["clips"] = clips
    sizes = [_size(record, m) if m.kind == "image" and m.data is not None else None for m in record.media]
    facts["sizes"] = [s for s in sizes[: len(record.candidates)] if s is not None]
    row = Record(name=record.record_id, prompt=record.prompt, media=[media_row(m) for m in record.media], facts=facts)
    session.add(row)
    session.flush()
    pictures = [None if m.data is None else _picture(session, m.data) for m in record.media]
    for group in groups:
        session.add(Item(record_id=row.id, members=list(group), pictures=[pictures[i] for i in group]))
    filled.records += 1
    filled.items += len(groups)
    if config.checks and config.checked and (num_checks < CHECKS_AT_LEAST or num_checks < config.checks * filled.items):
        _add_check(session, row, record, groups[0], [pictures[i] for i in groups[0]], config)
        filled.checks += 1
    return True


def _comparable(record: VotedRecord, group: tuple[int, ...]) -> bool:
    """Whether these candidates are different pictures or different clips, and their files are there."""
    media = [record.candidates[i] for i in group]
    hashes = {m.sha256 for m in media}
    return all(m.data is not None for m in media) and len({m.kind for m in media}) == 1 and len(hashes) == len(media)


def _clip_shape(record: VotedRecord, ref: MediaRef) -> dict[str, Any] | None:
    if ref.kind != "video" or ref.data is None:
        return None
    need_pyav("annotate")
    return asdict(shape_of(ref.data, f"record {record.record_id}: {ref.path or 'clip'}"))


def _size(record: VotedRecord, ref: MediaRef) -> tuple[int, int]:
    try:
        return size_of(ref.data or b"")
    except unreadable() as error:
        origin = f"record {record.record_id}: {ref.path or 'picture'}"
        raise InputError(f"{origin}: not a picture, or damaged ({error})") from None


def _picture(session: Session, content: bytes) -> int:
    from rewarddance.data.schema import hash_of

    name = hash_of(content)
    row = session.scalar(select(Picture.id).where(Picture.sha256 == name))
    if row is not None:
        return row
    picture = Picture(sha256=name, content=content)
    session.add(picture)
    session.flush()
    return picture.id


def _add_check(
    session: Session,
    row: Record,
    record: VotedRecord,
    group: tuple[int, ...],
    pictures: list[int | None],
    config: DeskConfig,
) -> None:
    """A copy of an item whose last picture (or clip) is noise."""
    ref = record.candidates[group[-1]]
    content = ref.data or b""
    made = shuffled_clip(content, config.seed, "check") if ref.kind == "video" else noise_of(content, config.seed)
    noise = _picture(session, made)
    item = Item(record_id=row.id, members=list(group), pictures=[*pictures[:-1], noise], noise=len(group) - 1)
    session.add(item)
