"""From a draft to a record: open and check its pictures, name every file by its content, fix the candidates' order."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rewarddance.core.clips import moving_gif
from rewarddance.core.errors import InputError
from rewarddance.core.media import Media, check_size
from rewarddance.core.types import swap_roles
from rewarddance.data.drafts import Draft
from rewarddance.data.schema import hash_of, suffix_of
from rewarddance.data.votes import MediaRef, Vote, VotedRecord, check_votes

_LINKS = ("http://", "https://", "s3://", "gs://")


def is_link(path: str) -> bool:
    """Whether a path is an address, which is never opened."""
    return path.lower().startswith(_LINKS)


def inside(root: Path, path: str) -> Path:
    """The file under the media root; refuses paths that leave it, through `..`, links or an absolute path."""
    base = root.resolve()
    resolved = (base / path).resolve()
    if not resolved.is_relative_to(base):
        raise InputError(f"{path}: outside the media root")
    return resolved


def load(draft: Draft, root: Path, clips: Path | None = None, store_clips: bool = False) -> VotedRecord:
    """The record of a draft with its pictures opened and checked.

    Args:
        clips: folder for clips whose bytes the file holds; they are written there by content.
        store_clips: open and check clips too, and keep their files in the record.

    Raises:
        InputError: a file is missing, outside `root`, no picture or not one that a judge can look at; two candidates
            are the same picture; a candidate is a clip and another is a picture; or a vote does not fit the candidates.
    """
    record = draft.record
    media = tuple(_loaded(m, root, clips, store_clips) for m in record.media)
    candidates = [m for m in media if m.role == "candidate"]
    for i, ref in enumerate(candidates):
        twin = next((c for c in candidates[:i] if ref.sha256 and c.sha256 == ref.sha256), None)
        if twin is not None:
            names = dict.fromkeys(str(m.path) for m in (twin, ref))
            raise InputError(f"{' and '.join(names)}: the same picture twice")
    pictures, moving = ([m for m in candidates if m.kind == kind] for kind in ("image", "video"))
    if pictures and moving:
        both = f"{moving[0].path or 'a clip'} is a clip, {pictures[0].path or 'another candidate'} is a picture"
        raise InputError(f"{both}; give candidates of one kind")
    record = replace(record, media=media)
    check_votes(record)
    return by_content(record) if draft.winner_first else record


def _loaded(ref: MediaRef, root: Path, clips: Path | None, store_clips: bool) -> MediaRef:
    if _is_still_gif(ref, root):
        ref = replace(ref, kind="image")
    if ref.kind == "image":
        return _picture(ref, root)
    if ref.kind == "video":
        return _stored_clip(ref, root) if store_clips else _clip(ref, root, clips)
    return ref


def _is_still_gif(ref: MediaRef, root: Path) -> bool:
    """Whether a clip by its ending is a GIF of one frame, which is a picture."""
    name = ref.path or ""
    if ref.kind != "video" or not name.lower().endswith(".gif") or (ref.data is None and is_link(name)):
        return False
    if ref.data is not None:
        return not moving_gif(io.BytesIO(ref.data))
    path = inside(root, name)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return not moving_gif(path)


def _stored_clip(ref: MediaRef, root: Path) -> MediaRef:
    """A clip with its file, opened and checked."""
    content = ref.data
    if content is None:
        if ref.path is None:
            raise InputError("a clip of single frames; only files of clips can be stored")
        if is_link(ref.path):
            raise InputError(f"{ref.path}: a link; download the clips, and name their folder with --media-root")
        path = inside(root, ref.path)
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        content = path.read_bytes()
    name = ref.path or "clip"
    clip = Media.open(io.BytesIO(content), origin=name)
    if not clip.is_clip:
        raise InputError(f"{name}: one frame, not a clip")
    check_size(*clip.size, clip.origin)
    return replace(ref, data=content, sha256=hash_of(content), fps=clip.fps, num_frames=clip.num_frames)


def _picture(ref: MediaRef, root: Path) -> MediaRef:
    name, content = ref.path or "picture", ref.data
    if content is None:
        if is_link(name):
            raise InputError(f"{name}: a link; download the pictures, and name their folder with --media-root")
        path = inside(root, name)
        if not path.is_file():
            Media.open_picture(path)  # says what is wrong
        content = path.read_bytes()
        name = str(path)
    media = Media.open_picture(io.BytesIO(content), origin=name)
    check_size(*media.size, media.origin)
    return replace(ref, data=content, sha256=hash_of(content))


def _clip(ref: MediaRef, root: Path, clips: Path | None) -> MediaRef:
    """A clip stays a reference: a link as it is, a file of the media root with its hash."""
    if ref.data is not None:
        sha256 = hash_of(ref.data)
        if clips is None:
            return replace(ref, data=None, sha256=sha256)
        clips.mkdir(parents=True, exist_ok=True)
        target = clips / f"{sha256}{suffix_of(ref.data)}"
        target.write_bytes(ref.data)
        return replace(ref, data=None, sha256=sha256, path=f"{clips.name}/{target.name}")
    missing = next((f for f in ref.frames if not is_link(f) and not inside(root, f).is_file()), None)
    if missing:
        raise InputError(f"{missing}: no such file")
    if ref.path is None or is_link(ref.path):
        return ref
    path = inside(root, ref.path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return replace(ref, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def by_content(record: VotedRecord) -> VotedRecord:
    """The record with its candidates in the order of their contents' hashes, which says nothing about the votes.

    Candidates without a hash are ordered by their paths.
    """
    candidates = record.candidates
    keys = [(m.sha256 or "", m.path or "", m.model or "") for m in candidates]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return reordered(record, order)


def reordered(record: VotedRecord, order: Sequence[int]) -> VotedRecord:
    """The record with candidate `order[i]` at place i. Choices name the candidate that now comes first, first.

    The reason of a choice that is turned has its roles exchanged.
    """
    new = {old: i for i, old in enumerate(order)}
    candidates = record.candidates
    truth = None if record.truth is None else tuple(record.truth[i] for i in order)
    votes = tuple(_renamed(v, new) for v in record.votes)
    return replace(record, media=(*(candidates[i] for i in order), *record.conditions), votes=votes, truth=truth)


def _renamed(vote: Vote, new: dict[int, int]) -> Vote:
    places = tuple(new[i] for i in vote.media)
    shown = tuple(new[i] for i in vote.shown)
    if vote.kind == "choice" and places[0] > places[1]:
        reason = None if vote.reason is None else swap_roles(vote.reason)
        return replace(vote, media=places[::-1], values=(1 - vote.values[0],), shown=shown, reason=reason)
    if vote.kind != "choice":
        pairs = sorted(zip(places, vote.values, strict=True))
        return replace(vote, media=tuple(p for p, _ in pairs), values=tuple(v for _, v in pairs), shown=shown)
    return replace(vote, media=places, shown=shown)
