"""Public sets of pictures with captions and styles: COCO captions, LAION's Parquet and webdataset tars, WikiArt.

They give prompts (`read_prompts`), and reference pictures for FID, novelty and CLIP similarity to a style.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.data.files import csv_rows, parquet_rows
from rewarddance.data.loading import inside

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of pictures in folders and tars."""
CAPTIONS = ("caption", "TEXT", "text", "prompt")
"""Columns of captions in Parquet and CSV files; LAION's own is `TEXT`, that of img2dataset is `caption`."""
FILES = ("filename", "file", "path", "image")
"""Columns of files in a WikiArt CSV."""


@dataclass(frozen=True)
class SourcePicture:
    """A picture of a set.

    Attributes:
        name: its file, for messages.
        caption, style: "" if the set gives none.
        content: its bytes, or the path of its file; None if the set only links to it.
    """

    name: str
    caption: str = ""
    style: str = ""
    content: bytes | Path | None = None

    def media(self) -> Media:
        """The picture.

        Raises:
            InputError: the set only links to it, or its bytes are not a picture.
        """
        if self.content is None:
            raise InputError(f"{self.name}: the set links to its pictures and does not hold them; download them first")
        return Media.open_picture(
            io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content, origin=self.name
        )


def pictures_of(source: Path, style: str | None = None) -> Iterator[SourcePicture]:
    """The pictures of a set, one after another. No picture is opened.

    - A folder with tars: the pictures of its tars.
    - Another folder: its pictures in the order of their names. The style of a picture in a subfolder is the name of
      the subfolder. Its caption comes from its file name, if that is WikiArt's (`artist_title.jpg`).
    - `.tar`: webdataset, `key.jpg` with `key.txt` or `key.json` (`caption`, `style`).
    - `.parquet`: LAION's metadata, or img2dataset's with the bytes in `jpg`.
    - `.csv`: WikiArt's list of files with `style` (or `genre`, or the file's folder); a caption is optional.
    - `.json`: COCO's captions, one picture each; the pictures lie beside the file, or in a folder of the split's name
      beside it or above.

    Args:
        style: only pictures of this style.

    Raises:
        InputError: no such set, or a broken one. A file that leaves the set's folder is refused.
    """
    pictures = _read(source)
    return pictures if style is None else (p for p in pictures if p.style == style)


def _read(source: Path) -> Iterator[SourcePicture]:
    if source.is_dir():
        tars = sorted(source.glob("*.tar"))
        return (p for tar in tars for p in _tar(tar)) if tars else _folder(source)
    read = {".tar": _tar, ".parquet": _parquet, ".csv": _csv, ".json": _coco}.get(source.suffix.lower())
    if not source.is_file() or read is None:
        raise InputError(f"{source}: no set of pictures; give a folder, .tar, .parquet, .csv or COCO's .json")
    return read(source)


def _folder(source: Path) -> Iterator[SourcePicture]:
    for file in sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in ENDINGS):
        parts = file.relative_to(source).parts
        style = _style_of(parts[0]) if len(parts) > 1 else ""
        yield SourcePicture(str(file), title_of(file.stem), style, file)


def title_of(stem: str) -> str:
    """A caption from the name of a WikiArt file, `artist_title`; "" if the name is not of this kind.

    >>> title_of("vincent-van-gogh_the-starry-night-1889")
    'the starry night, by vincent van gogh'
    """
    artist, found, title = stem.partition("_")
    title = re.sub(r"-\d{4}(-\d+)?$", "", title).replace("-", " ").strip()
    return f"{title}, by {artist.replace('-', ' ')}" if found and artist and title else ""


def _style_of(folder: str) -> str:
    return folder.replace("_", " ")


def _tar(source: Path) -> Iterator[SourcePicture]:
    """The pictures of a webdataset tar, in which the files of one key follow one another."""
    key, held = "", dict[str, bytes]()
    try:
        with tarfile.open(source, "r|*") as tar:
            for member in tar:
                folder, slash, file_name = member.name.removeprefix("./").rpartition("/")
                base, _, ending = file_name.partition(".")
                stem = folder + slash + base
                if stem != key:
                    yield from _of_key(source, key, held)
                    key, held = stem, {}
                if member.isfile() and (file := tar.extractfile(member)) is not None:
                    held[f".{ending.lower()}"] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{source}: not a readable tar ({error})") from None
    yield from _of_key(source, key, held)


def _of_key(source: Path, key: str, held: dict[str, bytes]) -> Iterator[SourcePicture]:
    picture = next((held[e] for e in ENDINGS if e in held), None)
    if picture is None:
        return
    try:
        facts = json.loads(held.get(".json", b"{}"))
        text = held[".txt"].decode() if ".txt" in held else str(facts.get("caption") or "")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{source}: {key}: unreadable caption ({error})") from None
    yield SourcePicture(f"{source}: {key}", text.strip(), str(facts.get("style") or ""), picture)


def _parquet(source: Path) -> Iterator[SourcePicture]:
    for number, row in parquet_rows(source):
        assert not isinstance(row, str)
        caption = next((row[c] for c in CAPTIONS if row.get(c)), "")
        content = row.get("jpg", row.get("image"))
        content = content.get("bytes") if isinstance(content, dict) else content
        yield SourcePicture(f"{source}: row {number}", str(caption).strip(), str(row.get("style") or ""), content)


def _csv(source: Path) -> Iterator[SourcePicture]:
    for number, row in csv_rows(source):
        if isinstance(row, str):
            raise InputError(f"{source}: row {number}: {row}")
        name = next((str(row[c]) for c in FILES if row.get(c)), "")
        path = PurePosixPath(name)
        style = row.get("style") or row.get("genre") or (path.parts[0] if len(path.parts) > 1 else "")
        words = re.search(r"\w[^'\"\]]*", style)  # WikiArt's CSV files hold lists as text: "['Realism']"
        caption = next((row[c] for c in CAPTIONS if row.get(c)), "").strip() or title_of(path.stem)
        content = inside(source.parent, name) if name else None
        yield SourcePicture(name or f"{source}: row {number}", caption, _style_of(words[0]) if words else "", content)


def _coco(source: Path) -> Iterator[SourcePicture]:
    try:
        content: Any = json.loads(source.read_text(encoding="utf-8-sig"))
        captions = dict[Any, str]()
        for row in content["annotations"]:
            captions.setdefault(row["image_id"], str(row["caption"]).strip())
        names = [(str(row["file_name"]), captions.get(row["id"], "")) for row in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source}: not COCO's captions ({type(error).__name__}: {error})") from None
    split = source.stem.removeprefix("captions_")
    folders = [f / part for f in (source.parent, source.parent.parent) for part in ("", split, f"images/{split}")]
    root = next((f for f in folders if names and inside(f, names[0][0]).is_file()), source.parent)
    for name, caption in names:
        yield SourcePicture(name, caption, "", inside(root, name))
