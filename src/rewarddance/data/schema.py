"""Records as Parquet rows that `datasets.load_dataset` reads.

Columns of version 2: version, id, prompt, source, images (encoded pictures, candidates before conditions), clips (the
same for clips whose files the row holds; files from before clips have no such column), media (what each candidate and
condition is), votes, preferences (derived: criterion, choices, ratings), truth, groups. A row holds
all votes and criteria of its candidates, so each row stores its pictures once. Rows that were made without votes (the
embedded world, whose labels are means) have only preferences.

Version 1 had one criterion a row, with `criterion`, `choices` and `ratings` as columns. `migrate` reads it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewarddance.core.clips import encode_clip
from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.data.derive import HIGHEST, LOWEST, Preference, preferences
from rewarddance.data.votes import VERSION, MediaRef, Vote, VotedRecord

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CHOICE = pa.struct(
    [
        ("first", pa.int32()),
        ("second", pa.int32()),
        ("label", pa.float32()),
        ("rationale", pa.string()),
        ("strength", pa.float32()),
    ]
)
_GROUP = pa.struct([("name", pa.string()), ("value", pa.string())])
_MEDIA = pa.struct(
    [
        ("kind", pa.string()),
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("model", pa.string()),
        ("role", pa.string()),
        ("frames", pa.list_(pa.string())),
        ("fps", pa.float64()),
        ("num_frames", pa.int32()),
        ("settings", pa.string()),
    ]
)
_VOTE = pa.struct(
    [
        ("kind", pa.string()),
        ("media", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
        ("criterion", pa.string()),
        ("annotator", pa.string()),
        ("created", pa.string()),
        ("seconds", pa.float64()),
        ("shown", pa.list_(pa.int32())),
        ("both_bad", pa.bool_()),
        ("strength", pa.float64()),
        ("scale", pa.list_(pa.float64())),
        ("weight", pa.float64()),
        ("reason", pa.string()),
    ]
)
_PREFERENCE = pa.struct(
    [("criterion", pa.string()), ("choices", pa.list_(_CHOICE)), ("ratings", pa.list_(pa.float32()))]
)
_HF_FEATURES = b'{"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "List"}}}}'
"""Tells `datasets` that `images` are pictures; it reads all other types from the Parquet schema."""
SCHEMA = pa.schema(
    [
        ("version", pa.int32()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("source", pa.string()),
        ("images", pa.list_(_IMAGE)),
        ("clips", pa.list_(_IMAGE)),
        ("media", pa.list_(_MEDIA)),
        ("votes", pa.list_(_VOTE)),
        ("preferences", pa.list_(_PREFERENCE)),
        ("truth", pa.list_(pa.float32())),
        ("groups", pa.list_(_GROUP)),
    ],
    metadata={"huggingface": _HF_FEATURES},
)

_SUFFIXES = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


def suffix_of(content: bytes) -> str:
    """The usual ending of an encoded picture's or clip's file name, by its first bytes."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    if content[4:8] == b"ftyp":
        return ".avif" if content[8:12] in (b"avif", b"avis", b"mif1") else ".mp4"
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        return ".webm"
    return next((suffix for magic, suffix in _SUFFIXES if content.startswith(magic)), ".bin")


def hash_of(content: bytes) -> str:
    """The name of a file by its content: SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def stored_name(ref: MediaRef) -> str:
    """`<sha256>.<ending>` of a picture whose file is at hand."""
    content = ref.data or b""
    return f"{ref.sha256 or hash_of(content)}{suffix_of(content)}"


def png_bytes(media: Media) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    media.to_pil().save(buffer, "PNG")
    return buffer.getvalue()


def mp4_bytes(clip: Media) -> bytes:
    """A clip as MP4 that keeps every value.

    Raises:
        InputError: PyAV is missing, or the clip has no frames per second.
    """
    if clip.fps is None:
        raise InputError(f"{clip.origin or 'clip'}: a clip is stored with its frames per second; this one has none")
    pixels = clip.to_bytes().permute(0, 2, 3, 1).numpy()
    return encode_clip(pixels, clip.fps, Path(f"{clip.origin or 'clip'}.mp4"), lossless=True)


def _stored(media: Media) -> MediaRef:
    """A picture as PNG, or a clip as lossless MP4."""
    if not media.is_clip:
        content = png_bytes(media)
        return MediaRef(sha256=hash_of(content), data=content)
    content = mp4_bytes(media)
    return MediaRef("video", sha256=hash_of(content), data=content, fps=media.fps, num_frames=media.num_frames)


def row_of(record: PreferenceRecord, encoded: Sequence[bytes] | None = None) -> dict[str, Any]:
    """A Parquet row of a record without votes. With `encoded` it holds these pictures instead of new files.

    Raises:
        InputError: a clip that cannot be stored (`mp4_bytes`).
    """
    if encoded is not None:
        refs = [MediaRef(sha256=hash_of(b), data=b) for b in encoded]
    else:
        refs = [_stored(m) for m in record.media]
    if record.condition is not None:
        refs.append(replace(_stored(record.condition), role="condition"))
    preference = Preference(record.criterion, record.choices, record.ratings)
    return _row(
        record.record_id,
        record.prompt,
        record.source,
        refs,
        (),
        [preference],
        record.truth,
        record.groups,
    )


def row_of_votes(record: VotedRecord) -> dict[str, Any]:
    """A Parquet row of a record with its votes and the preferences derived from them."""
    return _row(
        record.record_id,
        record.prompt,
        record.source,
        record.media,
        record.votes,
        preferences(record),
        record.truth,
        record.groups,
    )


def _row(
    name: str,
    prompt: str,
    source: str,
    media: Sequence[MediaRef],
    votes: Sequence[Vote],
    derived: Sequence[Preference],
    truth: Sequence[float] | None,
    groups: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "id": name,
        "prompt": prompt,
        "source": source,
        "images": [{"bytes": m.data, "path": stored_name(m)} for m in media if m.kind == "image"],
        "clips": [{"bytes": m.data, "path": stored_name(m)} for m in media if m.kind == "video" and m.data is not None],
        "media": [media_row(m) for m in media],
        "votes": [vote_row(v) for v in votes],
        "preferences": [
            {
                "criterion": p.criterion,
                "choices": [_choice_row(c) for c in p.choices],
                "ratings": None if p.ratings is None else list(p.ratings),
            }
            for p in derived
        ],
        "truth": None if truth is None else list(truth),
        "groups": [{"name": k, "value": v} for k, v in groups.items()],
    }


def _choice_row(c: Choice) -> dict[str, Any]:
    return {
        "first": c.first,
        "second": c.second,
        "label": c.label,
        "rationale": c.rationale,
        "strength": c.strength,
    }


def vote_row(vote: Vote) -> dict[str, Any]:
    """A vote as plain values."""
    return {
        "kind": vote.kind,
        "media": list(vote.media),
        "values": list(vote.values),
        "criterion": vote.criterion,
        "annotator": vote.annotator,
        "created": vote.created,
        "seconds": vote.seconds,
        "shown": list(vote.shown),
        "both_bad": vote.both_bad,
        "strength": vote.strength,
        "scale": None if vote.scale is None else list(vote.scale),
        "weight": vote.weight,
        "reason": vote.reason,
    }


def media_row(ref: MediaRef) -> dict[str, Any]:
    """A candidate or condition as plain values, without its file."""
    return {
        "kind": ref.kind,
        "path": ref.path,
        "sha256": ref.sha256,
        "model": ref.model,
        "role": ref.role,
        "frames": list(ref.frames),
        "fps": ref.fps,
        "num_frames": ref.num_frames,
        "settings": ref.settings,
    }


def vote_of(row: Mapping[str, Any]) -> Vote:
    """The inverse of `vote_row`. Keys that are missing have their defaults.

    Raises:
        InputError: no `kind`, `media` or `values`, or a key that votes do not have.
    """
    given = {k: v for k, v in row.items() if v is not None}
    tuples = {k: tuple(given[k]) for k in ("media", "values", "shown", "scale") if isinstance(given.get(k), list)}
    try:
        return Vote(**{**given, **tuples})
    except TypeError as error:
        raise InputError(f"not a vote ({error})") from None


def media_of(row: Mapping[str, Any], data: bytes | None = None) -> MediaRef:
    """The inverse of `media_row`.

    Raises:
        InputError: a key that media do not have.
    """
    given = {k: v for k, v in row.items() if v is not None}
    try:
        return MediaRef(**{**given, "frames": tuple(given.get("frames", ())), "data": data})
    except TypeError as error:
        raise InputError(f"not a medium ({error})") from None


def migrate(row: dict[str, Any]) -> dict[str, Any]:
    """A row of any version as a row of the current version.

    Raises:
        InputError: a row of a newer version.
    """
    version = row.get("version") or 1
    if version > VERSION:
        raise InputError(f"record {row.get('id')}: version {version} of the schema; this is version {VERSION}, update")
    if version == VERSION:
        return row
    files = [image["bytes"] for image in row["images"]]
    refs = [MediaRef(sha256=hash_of(b), data=b) for b in files]
    made = tuple(choice_of(c) for c in row["choices"])
    ratings = row.get("ratings")
    derived = Preference(row.get("criterion") or "overall", made, tuple(ratings) if ratings else None)
    groups = {g["name"]: g["value"] for g in row.get("groups") or ()}
    return _row(row["id"], row["prompt"], row.get("source") or "", refs, (), [derived], row.get("truth"), groups)


def choice_of(row: Mapping[str, Any]) -> Choice:
    """A choice from plain values."""
    return Choice(row["first"], row["second"], row["label"], row.get("rationale"), row.get("strength"))


def voted(row: dict[str, Any]) -> VotedRecord:
    """A row of any version as a record with votes. Preferences without votes become votes of nobody.

    A label of such a vote may be a mean of several people, so it says nothing about agreement. A record of version 1
    that names one annotator among its groups gives its votes to that annotator.
    """
    row = migrate(row)
    files = {"image": iter(row.get("images") or []), "video": iter(row.get("clips") or [])}
    media = []
    for entry in row["media"]:
        file = next(files.get(entry["kind"], iter(())), None)
        media.append(media_of(entry, file["bytes"] if file else None))
    groups = {g["name"]: g["value"] for g in row["groups"] or ()}
    votes = tuple(vote_of(v) for v in row["votes"])
    if not votes:
        derived = (
            Preference(p["criterion"], tuple(map(choice_of, p["choices"])), p["ratings"]) for p in row["preferences"]
        )
        votes = tuple(replace(v, annotator=groups.get("annotator")) for p in derived for v in votes_of(p))
    truth = tuple(row["truth"]) if row["truth"] else None
    return VotedRecord(row["id"], row["prompt"], tuple(media), votes, row["source"] or "", truth, groups)


def votes_of(preference: Preference) -> list[Vote]:
    """Votes of nobody that stand for a preference whose votes were not kept."""
    made = [
        Vote("choice", (c.first, c.second), (c.label,), preference.criterion, strength=c.strength, reason=c.rationale)
        for c in preference.choices
    ]
    if preference.ratings:
        given = tuple(preference.ratings)
        made.append(Vote("rating", tuple(range(len(given))), given, preference.criterion, scale=(LOWEST, HIGHEST)))
    return made
