"""`rewarddance align`: names in the configuration to models and prompts, then `align_generator`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import InputError
from rewarddance.core.progress import console
from rewarddance.core.seen import fingerprint
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import generator_of, load_judge
from rewarddance.jobs.probes import Gold, judge_gold, oracle_gold


def align_from_names(config: AlignConfig, out: Path, resume: bool = False) -> Path:
    """Load what the configuration names and align; returns the adapter's folder.

    With a file of prompts there is no oracle: `gold_judge` is the gold standard, and without one the probes log the
    proxy alone.

    Raises:
        InputError: a file of prompts is missing, empty, or not the one that the configuration was made with.
    """
    lines = probes = None
    if config.prompts is not None:
        lines, found = read_prompts(Path(config.prompts))
        if config.prompts_sha256 not in (None, found):
            raise InputError(f"{config.prompts}: has changed since the run was made")
        config = config.model_copy(update={"prompts_sha256": found})
        if len(lines) > config.num_prompts:
            console.print(
                f"{config.prompts}: {len(lines):,} prompts; trains on the first {config.num_prompts:,} (num_prompts)",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
            lines = lines[: config.num_prompts]
    if config.probe_file is not None:
        probes, _ = read_prompts(Path(config.probe_file))
        _say_of_probes(config, probes, lines or [])
    if config.algorithm == "sft":  # nothing is judged
        return align_generator(config, generator_of(config), None, out, prompts=lines, resume=resume)
    judge = load_judge(config.judge, precision=config.precision, image_cache=config.num_prompts)
    generator = generator_of(config)
    gold: Gold | None = None if lines else oracle_gold
    if config.gold_judge is not None:
        other = load_judge(config.gold_judge, precision=config.precision)
        gold = judge_gold(other, other.own_or(config.criterion or judge.criterion))
    return align_generator(config, generator, judge, out, prompts=lines, probe_prompts=probes, gold=gold, resume=resume)


def _say_of_probes(config: AlignConfig, probes: Sequence[str], trained_on: Sequence[str]) -> None:
    """What of the probes is not looked at, and what is no held-out prompt."""
    known = {fingerprint(p) for p in trained_on}
    shared = sum(fingerprint(p) in known for p in probes[: config.probe_prompts])
    said = []
    if len(probes) > config.probe_prompts:
        said.append(f"{len(probes):,} prompts; probes look at the first {config.probe_prompts:,} (probe_prompts)")
    if shared:
        said.append(f"{shared} of the prompts that probes look at are trained on too, so their gain flatters")
    for text in said:
        console.print(f"{config.probe_file}: {text}", highlight=False, markup=False, soft_wrap=True)


def read_prompts(path: Path) -> tuple[list[str], str]:
    """Distinct prompts of a text file, one a line, and the file's SHA-256."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of prompts")
    content = path.read_bytes()
    lines = list(dict.fromkeys(line.strip() for line in content.decode().splitlines() if line.strip()))
    if not lines:
        raise InputError(f"{path}: holds no prompts")
    return lines, hashlib.sha256(content).hexdigest()
