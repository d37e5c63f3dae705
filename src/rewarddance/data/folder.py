"""The description of a data folder: `manifest.json` (counts, hashes) and `README.md` (a data card for `datasets`)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rewarddance.core.errors import InputError
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import stored_rows
from rewarddance.data.shards import split_files
from rewarddance.data.text import key_of
from rewarddance.data.votes import VERSION

SPLITS = ("train", "id", "ood")
"""Names of the splits of a data folder: training, held-out prompts, held-out prompts of another kind."""
CHANGES_FILE = "changes.parquet"
"""Held-out pairs in which one thing is wrong, for `evaluate` (clips of the embedded world)."""
_MARK = "<!-- written by rewarddance data; delete this line to keep your own text -->"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def splits_of(folder: Path) -> dict[str, Path]:
    """The splits of a data folder by name; a single file is one split.

    Raises:
        InputError: there is none.
    """
    if folder.is_file():
        return {folder.stem: folder}
    there = {name: folder / f"{name}.parquet" for name in SPLITS if split_files(folder / f"{name}.parquet")}
    if not there:
        raise InputError(f"{folder}: holds no train.parquet; `rewarddance data import` or `data build` writes one")
    return there


def counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of records, media, votes and choices of stored rows."""
    totals: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    criteria: Counter[str] = Counter()
    annotators, prompts, contents = set(), set(), set()
    for row in rows:
        totals["records"] += 1
        totals["media"] += len(row["media"])
        totals["votes"] += len(row["votes"])
        kinds.update(m["kind"] for m in row["media"])
        annotators |= {v["annotator"] for v in row["votes"] if v["annotator"]}
        contents |= {m["sha256"] for m in row["media"] if m["sha256"]}
        prompts.add(key_of(row["prompt"]))
        for preference in row["preferences"]:
            labels = [c["label"] for c in preference["choices"]]
            criteria[preference["criterion"]] += len(labels)
            totals["choices"] += len(labels)
            totals["ties"] += labels.count(0.5)
    names = ("records", "media", "votes", "choices", "ties")
    return {name: totals[name] for name in names} | {
        "prompts": len(prompts),
        "annotators": len(annotators),
        "distinct_files": len(contents),
        "choices_by_criterion": dict(criteria.most_common()),
        "media_by_kind": dict(kinds),
    }


def describe_folder(folder: Path, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write `manifest.json` and `README.md` for the splits of a folder. Returns the manifest.

    A README.md that a person wrote is left as it is.

    Args:
        facts: further entries of the manifest, such as the origin of the data.
    """
    manifest: dict[str, Any] = {
        "version": VERSION,
        "made_with": f"rewarddance {metadata.version('rewarddance')}",
        "splits": {},
        **(facts or {}),
    }
    for name, path in splits_of(folder).items():
        files = [_file_facts(p) for p in split_files(path)]
        manifest["splits"][name] = {"files": files, **counts(stored_rows(path, pictures=False))}
    write_json(folder / "manifest.json", manifest)
    card = folder / "README.md"
    if not card.is_file() or _MARK in card.read_text():
        card.write_text(data_card(folder.resolve().name, manifest))
    return manifest


def _file_facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def check_manifest(folder: Path) -> list[str]:
    """The differences between a folder's files and its manifest; empty if all hashes agree.

    Raises:
        InputError: the folder has no manifest.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{folder}: has no manifest.json")
    problems = []
    for split in json.loads(path.read_text())["splits"].values():
        for entry in split["files"]:
            file = folder / entry["name"]
            if not file.is_file():
                problems.append(f"{entry['name']} is missing")
            elif _file_facts(file) != entry:
                problems.append(f"{entry['name']} is not the file of the manifest")
    return problems


def data_card(name: str, manifest: Mapping[str, Any]) -> str:
    """The text of README.md: YAML front matter that `datasets.load_dataset` reads, and the manifest's counts."""
    splits = manifest["splits"]
    total = sum(s["records"] for s in splits.values())
    front = {
        "pretty_name": name,
        "tags": ["preference", "reward-model", "rewarddance"],
        "size_categories": [next((label for most, label in _SIZES if total < most), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": [f["name"] for f in s["files"]]} for split, s in splits.items()
                ],
            }
        ],
    }
    columns = ("records", "prompts", "media", "votes", "choices", "ties", "annotators")
    table = ["| split | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    table += [f"| {split} | " + " | ".join(f"{s[c]:,}" for c in columns) + " |" for split, s in splits.items()]
    criteria = {c: None for s in splits.values() for c in s["choices_by_criterion"]}
    imported = manifest.get("imported")
    origin = f"Imported from `{imported['file']}` ({imported['format']}). " if imported else ""
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            _MARK,
            f"# {name}",
            "",
            "Preferences between pictures or clips of one prompt, version "
            f"{manifest['version']} of rewarddance's records. {origin}Criteria: {', '.join(criteria) or 'none yet'}.",
            "",
            *table,
            "",
            "`votes` holds every judgement as it was made; `preferences` is derived from it, by criterion. "
            "`manifest.json` has the files' hashes.",
            "",
            "```python",
            "from datasets import load_dataset",
            f'load_dataset("{name}")',
            "```",
            "",
            "The licence is that of the pictures and judgements; fill it in before you publish this folder.",
            "",
        ]
    )
