"""What a person sees of an item: its candidates, and the pictures that these were made from (first frames)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.clips import Shape, common_shape, equal_clips
from rewarddance.apps.annotate.media import equal_pictures, size_of
from rewarddance.apps.annotate.models import Assignment, Item, Picture, Record, Shown


@dataclass(frozen=True)
class Seen:
    """The random ids under which a person sees an assignment, from left to right.

    Attributes:
        given: the pictures that the candidates were made from.
    """

    candidates: list[str]
    given: list[str]


def seen_of(session: Session, assignment: Assignment, record: Record) -> Seen:
    """The ids of an assignment. The ids of the given pictures are created at the first request.

    So assignments of an earlier version of the desk get these ids too.
    """
    query = select(Shown.token).where(Shown.assignment_id == assignment.id).order_by(Shown.place)
    tokens, num = list(session.scalars(query)), len(assignment.order)
    for place, picture in enumerate(_given_to(session, record), num):
        if place >= len(tokens):
            tokens.append(secrets.token_urlsafe(16))
            session.add(Shown(token=tokens[-1], assignment_id=assignment.id, place=place, picture_id=picture))
    session.flush()
    return Seen(tokens[:num], tokens[num:])


def _given_to(session: Session, record: Record) -> list[int]:
    """Ids of the pictures that a record's candidates were made from. Clips and links among them are not shown."""
    names = [m["sha256"] for m in record.media if m["role"] == "condition" and m["kind"] == "image" and m["sha256"]]
    query = select(Picture.sha256, Picture.id).where(Picture.sha256.in_(names))
    known = {row.sha256: row.id for row in session.execute(query)}
    return [known[name] for name in names if name in known]


def shapes_of(record: Record, item: Item) -> list[Shape]:
    """Shapes of all clips of an item's record; empty for pictures.

    The clips of the item get the common shape of all these clips. So the shape does not tell which candidates are in
    the item.
    """
    clips = record.facts.get("clips")
    return [Shape(**clip) for clip in clips if clip] if clips and clips[item.members[0]] else []


@dataclass(frozen=True)
class Wanted:
    """A file that a person asks for.

    Attributes:
        picture: id of the picture or clip.
        given: its place among the given pictures; None for a candidate.
        candidates: ids of the item's candidates, whose common size every file of the item gets.
        shapes: of the record's clips; empty for pictures.
        sizes: of the record's pictures; empty in desks of an earlier version.
    """

    item: int
    picture: int
    given: int | None
    candidates: tuple[int, ...]
    shapes: Sequence[Shape]
    sizes: Sequence[tuple[int, int]]

    @property
    def key(self) -> str:
        """The name under which its files are remembered."""
        return f"{self.item}" if self.given is None else f"{self.item} given {self.given}"

    @property
    def media_type(self) -> str:
        return "video/mp4" if self.shapes and self.given is None else "image/png"

    def encoded(self, load: Callable[[int], bytes]) -> list[bytes]:
        """The files that are made together: all candidates of the item, or one given picture.

        Args:
            load: gives the content of a picture or clip by its id.
        """
        if self.given is not None and self.shapes:
            shape = common_shape(self.shapes)
            return equal_pictures([load(self.picture)], [(shape.width, shape.height)])
        files = [load(number) for number in self.candidates]
        if self.shapes:
            return equal_clips(files, self.shapes)
        sizes = self.sizes or list(map(size_of, files))
        return equal_pictures(files if self.given is None else [load(self.picture)], sizes)

    def of(self, files: Sequence[bytes]) -> bytes:
        """The requested file, out of the files that `encoded` returned."""
        return files[0 if self.given is not None else self.candidates.index(self.picture)]


def wanted(session: Session, token: str, person: int) -> Wanted | None:
    """The file with this id. None if it belongs to no assignment of the person."""
    query = (
        select(Shown.place, Shown.picture_id, Assignment.item_id)
        .join(Assignment, Assignment.id == Shown.assignment_id)
        .where(Shown.token == token, Assignment.person_id == person)
    )
    row = session.execute(query).first()
    if row is None:
        return None
    item = session.get_one(Item, row.item_id)
    record = session.get_one(Record, item.record_id)
    after = row.place - len(item.pictures)
    sizes = [(width, height) for width, height in record.facts.get("sizes", ())]
    given = after if after >= 0 else None
    return Wanted(row.item_id, row.picture_id, given, tuple(item.pictures), shapes_of(record, item), sizes)
