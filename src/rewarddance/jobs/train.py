"""`rewarddance train`: names in the configuration to records and a backbone, then `train_reward`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from rewarddance.core.errors import InputError
from rewarddance.core.parallel import is_leader, wait_for_all
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import console
from rewarddance.core.seen import FILE, fingerprint, read_seen
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.build.preferences import PreferencesConfig
from rewarddance.jobs.data_build import build_data
from rewarddance.jobs.load import find, load_to_train
from rewarddance.jobs.train_reward import train_judge
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.reward.checkpoint import spec_of
from rewarddance.reward.config import SCALAR

VALIDATION_SHARE = 0.1
MAX_VALIDATION = 128
"""Records scored at every validation."""
WORDING = ("instruction", "instructions", "yes", "no", "layout", "names", "cot")
"""What of a context decides the words of a question."""


def train_from_data(config: RewardConfig, out: Path, *, resume: bool = False) -> Path:
    """Train on `config.data`. Returns the judge's folder.

    Data folders without held-out files give a tenth of their prompts to validation.
    """
    known = known_before(config)
    train, validation = load_sets(data_folder(config, out), config.seed, seen=known)
    if config.context.cot != "none" and not train.has_rationales:
        raise InputError(f"{train.name}: chain of thought needs reasons; `rewarddance data rationales` asks for them")
    warn_of_labels(train)
    if is_leader() and (other := asked_otherwise(config)):
        console.print(other, highlight=False, markup=False, soft_wrap=True)
    return train_judge(config, load_to_train(config), train, validation, out, known=known, resume=resume)


def known_before(config: RewardConfig) -> frozenset[str] | None:
    """Fingerprints of what a judge that training goes on from was trained on; none for a VLM that never judged.

    None, after a warning, for a judge of which nobody wrote it down.
    """
    folder = find(config.backbone, "vlm")
    if not (folder / "judge.json").is_file():
        return frozenset()
    seen = read_seen(folder)
    if seen is None and is_leader():
        warning = f"{config.backbone}: a judge without {FILE}; prompts counted as held out may have been its lessons"
        console.print(warning, highlight=False, markup=False, soft_wrap=True)
    return seen


def asked_otherwise(config: RewardConfig) -> str | None:
    """A warning where training goes on from a judge that knows another question than the one that is put now."""
    folder = find(config.backbone, "vlm")
    if not (folder / "judge.json").is_file():
        return None
    judge = spec_of(folder)
    before, now = judge.context, config.temperature
    words = [k for k in WORDING if getattr(before, k) != getattr(config.context, k)]
    if not words and config.paradigm not in SCALAR and now not in ("fit", judge.temperature):
        known = f"{config.backbone}: a judge whose answers are divided by {judge.temperature:.3g}"
        return f"{known}, now by {now}; `temperature: fit` keeps it about as sure as it is"
    changes = ", ".join(f"context.{k}: {getattr(before, k)!r}, now {getattr(config.context, k)!r}" for k in words)
    return f"{config.backbone}: a judge that knows another question, and begins anew ({changes})" if words else None


def data_folder(config: RewardConfig, out: Path) -> Path:
    """Where the data is; the embedded world's is built under `out` when it is not there yet."""
    if config.data != "embedded":
        return Path(config.data)
    folder = out / "data"
    if is_leader() and not (folder / "ood.parquet").is_file():
        build_data(PreferencesConfig(seed=config.seed), MAX_VALIDATION, "tiny", folder)
    wait_for_all()
    return folder


def load_sets(
    folder: Path, seed: int, most: int = MAX_VALIDATION, seen: frozenset[str] | None = None
) -> tuple[RecordTable, dict[str, Sequence[PreferenceRecord]]]:
    """Training records and named validation sets of a data folder, at most `most` records each, evenly spread.

    Args:
        seen: fingerprints of prompts that the model has been trained on already; none of them is for validation.

    Raises:
        InputError: no training file, or too few prompts to hold any out.
    """
    train = RecordTable.open(folder / "train.parquet")
    named = {n: RecordTable.open(folder / f"{n}.parquet") for n in ("id", "ood") if (folder / f"{n}.parquet").is_file()}
    if not named:
        train, held = split_table(train, VALIDATION_SHARE, seed, seen or ())
        named = {"id": held}
    named = {n: _unseen(t, seen)[0] for n, t in named.items()}
    if len(train) == 0:
        raise InputError(f"{folder}: no training records")
    return train, {n: _spread(t, most) for n, t in named.items()}


def held_out_sets(
    folder: Path, seen: frozenset[str] | None, seed: int, most: int
) -> dict[str, tuple[Sequence[PreferenceRecord], int]]:
    """Named sets of prompts that a judge was not trained on, `most` records each at most, and how many were left out.

    They are the held-out files of a data folder, or where it has none all of it; without knowing what was `seen`, the
    tenth that a training with this seed would hold out.

    Raises:
        InputError: nothing is left of a set.
    """
    named = {n: RecordTable.open(folder / f"{n}.parquet") for n in ("id", "ood") if (folder / f"{n}.parquet").is_file()}
    if not named:
        table = RecordTable.open(folder / "train.parquet")
        named = {"id": split_table(table, VALIDATION_SHARE, seed)[1] if seen is None else table}
    found: dict[str, tuple[Sequence[PreferenceRecord], int]] = {}
    for name, table in named.items():
        rest, gone = _unseen(table, seen)
        found[name] = _spread(rest, most), gone
    return found


def _unseen(table: RecordTable, seen: frozenset[str] | None) -> tuple[RecordTable, int]:
    """The records whose prompts were not seen, and how many are left out."""
    if not seen:
        return table, 0
    rows = [i for i, p in enumerate(table.prompts) if fingerprint(p) not in seen]
    if not rows:
        raise InputError(f"{table.name}: the judge was trained on every prompt of it; evaluate on other data")
    return table.take(rows), len(table) - len(rows)


def _spread(table: RecordTable, most: int) -> RecordTable:
    """At most `most` rows, evenly over the table, so that every source is among them."""
    return table if len(table) <= most else table.take([i * len(table) // most for i in range(most)])


def warn_of_labels(table: RecordTable) -> None:
    """Say what `check_labels` finds.

    Raises:
        InputError: no choice prefers anything.
    """
    warning = check_labels(table)
    if warning and is_leader():
        console.print(warning, highlight=False, markup=False, soft_wrap=True)


def check_labels(table: RecordTable) -> str | None:
    """A warning where every choice names the same side.

    Raises:
        InputError: no choice prefers anything.
    """
    labels = table.labels
    if all(v == 0.5 for v in labels):
        raise InputError(f"{table.name}: {len(labels)} choices, all of them ties; there is nothing to learn")
    sides = {v > 0.5 for v in labels if v != 0.5}
    if len(sides) > 1:
        return None
    side = "first" if sides == {True} else "second"
    return (
        f"{table.name}: every choice names the {side} picture; right where the file puts the winner there on purpose "
        "(chosen and rejected), a broken label column otherwise"
    )


def split_table(
    table: RecordTable, share: float, seed: int, seen: Collection[str] = ()
) -> tuple[RecordTable, RecordTable]:
    """(train, validation) by prompt: all records of one prompt fall on the same side.

    A prompt whose fingerprint is among `seen` is not for validation.
    """
    prompts = table.prompts
    distinct = sorted(set(prompts))
    if len(distinct) < 2:
        raise InputError(f"{table.name}: one prompt only; a judge is validated on prompts that it was not trained on")
    num = max(1, int(len(distinct) * share))
    order = (distinct[int(i)] for i in stream(seed, "split").permutation(len(distinct)))
    held = set(islice((p for p in order if fingerprint(p) not in seen), num))
    if not held:
        raise InputError(f"{table.name}: the judge that training goes on from knows every prompt of it; add others")
    rows = [i for i, p in enumerate(prompts) if p in held]
    return table.take([i for i, p in enumerate(prompts) if p not in held]), table.take(rows)
