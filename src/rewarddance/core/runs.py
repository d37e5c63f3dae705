"""The run folder: `run.json`, `metrics.jsonl`, `samples/`, `checkpoints/`. Evaluations and reports read only this."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rewarddance.core.config import Config, differing_keys
from rewarddance.core.disk import writing
from rewarddance.core.errors import RunError
from rewarddance.core.loop_config import TrackerName
from rewarddance.core.trackers import Tracker, numbers_of, open_trackers

PACKAGES = ("rewarddance", "torch", "transformers", "diffusers", "peft", "numpy")


def environment() -> dict[str, Any]:
    """Facts besides the configuration on which figures depend: versions, git revision, hardware, number of
    processes."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git": _revision(),
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.platform(terse=True)} | _gpus(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _gpus() -> dict[str, Any]:
    """Names of the GPUs, if torch is loaded and sees any."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {"gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}


def _revision() -> str | None:
    """The commit of this package's own repository; None if there is no such repository, or no git."""
    command = ["git", "rev-parse", "--show-prefix", "HEAD"]
    try:
        out = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    words = out.split()
    return words[1] if len(words) == 2 and words[0] == "src/rewarddance/core/" else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


_CHANGEABLE = frozenset({"shard", "micro_batch", "device", "workers", "loop.max_seconds", "loop.trackers", "optim.lr"})
"""Keys that may change when a run is resumed: those that depend on the machine, and the learning rate, because a run
with too high a rate diverges."""


class RunFolder:
    """Writes and reads one run. Lines of `metrics.jsonl` are flushed as they are written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.trackers: Sequence[TrackerName] = ()
        """Where `log` sends numbers besides `metrics.jsonl`."""
        self._opened: list[Tracker] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def start(self, kind: str, config: Config, *, resume: bool = False, facts: Mapping[str, Any] | None = None) -> None:
        """Create the folder and write `run.json`.

        Args:
            facts: further entries of `run.json`, such as the precision that was chosen on this machine.

        Raises:
            RunError: the folder holds a run already and `resume` is False, or that run was made with another
                configuration. A resumed run with changed keys keeps the old configuration under `before`.
        """
        target = self.path / "run.json"
        values = config.model_dump(mode="json")
        if not target.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            started = {"kind": kind, "config": values, "started": time.time()}
            write_json(target, {**started, **(facts or {}), **environment()})
            return
        old = self.read()
        if not resume:
            raise RunError(f"{self.path}: holds a {old['kind']} run already; pass --resume or another --out")
        self._must_match(old, kind, config, _CHANGEABLE)
        if old["config"] != values:
            before = [*old.get("before", []), {"resumed": time.time(), "config": old["config"]}]
            write_json(target, {**old, **(facts or {}), "config": values, "before": before})

    def must_be(self, kind: str, config: Config) -> None:
        """Check that a finished run was made with this configuration, except for keys that depend on the machine.

        Raises:
            RunError: it was made with another configuration.
        """
        self._must_match(self.read(), kind, config, _CHANGEABLE - {"optim.lr"})

    def _must_match(self, old: Mapping[str, Any], kind: str, config: Config, ignored: AbstractSet[str]) -> None:
        if old["kind"] != kind:
            raise RunError(f"{self.path}: is a run of kind {old['kind']!r}, not {kind!r}")
        different = differing_keys(old["config"], config, ignored)
        if different:
            hint = ""
            if kind == "align" and "loop.num_steps" in different:
                hint = f"; to train its adapter further, name another --out and --adapter {self.path}"
            raise RunError(f"{self.path}: was made with another configuration ({', '.join(different)}){hint}")

    def read(self) -> dict[str, Any]:
        """The content of `run.json`."""
        try:
            content = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: not a run folder (run.json: {error})") from error
        return dict(content)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinities are written as null, which JSON readers accept."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        target = self.path / "metrics.jsonl"
        with writing(target, self.checkpoints), open(target, "a") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")
        if self.trackers and self._opened is None:
            self._opened = open_trackers(self.trackers, self.path, self.read()["config"], step)
        for tracker in self._opened or ():
            tracker.log(step, numbers_of(metrics))

    def close_trackers(self) -> None:
        """Close the trackers that `log` has opened."""
        for tracker in self._opened or ():
            tracker.close()
        self._opened = None

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`, in order, without a last line that a kill or a full disk cut short."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        whole = lines if not lines or lines[-1].endswith("\n") else lines[:-1]
        return [json.loads(line) for line in whole]

    def alarms(self) -> list[dict[str, Any]] | None:
        """Signs of reward hacking that the probes found in training: `step` and `text` of each.

        None if the run had no probe.
        """
        rows = self.metrics()
        if not any("probe/proxy" in row for row in rows):
            return None
        return [{"step": row["step"], "text": row["alarm"]} for row in rows if "alarm" in row]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of later steps, and a last line that a kill cut short."""
        target = self.path / "metrics.jsonl"
        if not target.exists():
            return
        kept = []
        for line in target.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:
                continue
        with writing(target, self.checkpoints):
            _replace(target, "".join(line + "\n" for line in kept))


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside the target and rename it, so that readers never see half a file.

    Raises:
        RunError: the file cannot be written, for example because the disk is full.
    """
    with writing(path):
        _replace(path, json.dumps(content, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file beside its place and rename it. If that fails, the file that was there stays."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def same_settings(
    path: Path,
    settings: Mapping[str, Any],
    config: Config | None = None,
    free: AbstractSet[str] = frozenset(),
    absent: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the settings of a folder's content to `path`, or check that the folder was made with the same settings.

    The arguments and errors are those of `check_settings`.
    """
    written = check_settings(path, settings, config, free, absent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, written)


def check_settings(
    path: Path,
    settings: Mapping[str, Any],
    config: Config | None = None,
    free: AbstractSet[str] = frozenset(),
    absent: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The settings that belong in `path`, checked against those that are there. Writes nothing.

    Args:
        settings: JSON values. A value of None matches any value, and is filled in by a later call that has one. So does
            a key that the file does not have.
        config: a configuration that belongs to the settings; keys that did not exist before count with their defaults.
        free: keys of `config` that may differ.
        absent: the values of keys that the file does not have, because an earlier version wrote it.

    Raises:
        RunError: names the settings that differ.
    """
    written = dict(settings) | ({} if config is None else {"config": config.model_dump(mode="json")})
    if path.is_file():
        before: dict[str, Any] = {**absent, **json.loads(path.read_text())}
        different = differing_keys(before.pop("config", {}), config, free) if config else []
        for key in settings.keys() | before.keys():
            if settings.get(key) is None:
                written[key] = before.get(key)
            elif before.get(key) not in (None, settings[key]):
                different.append(key)
        if different:
            raise RunError(f"{path.parent}: was made with other settings ({', '.join(different)}); name another --out")
    return written
