"""The run folder: `run.json`, `metrics.jsonl`, `samples/`, `checkpoints/`. Evaluation and reports read only this."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rewarddance.core.config import Config, differing
from rewarddance.core.errors import RunError

PACKAGES = ("rewarddance", "torch", "transformers", "diffusers", "peft", "numpy")


def environment() -> dict[str, Any]:
    """What a figure depends on besides the configuration: versions, git revision, hardware, number of processes."""
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
    """Names of the accelerators in sight, where torch is loaded and there are any."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {"gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}


def _revision() -> str | None:
    """The commit of this package's own repository; None where it was installed without one, or without git."""
    here = Path(__file__).parent
    try:
        asked = ["git", "rev-parse", "--show-prefix", "HEAD"]
        found = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        return None
    return found[1] if len(found) == 2 and found[0] == "src/rewarddance/core/" else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


_CHANGEABLE = {"": {"shard", "micro_batch"}, "loop": {"max_seconds"}, "optim": {"lr"}}
"""What a resumption may set anew, by section: processes, memory, the time limit, and a learning rate that diverged."""


class RunFolder:
    """Writes and reads one run. Lines of `metrics.jsonl` are flushed as they are written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def start(self, kind: str, config: Config, *, resume: bool = False) -> None:
        """Create the folder and write `run.json`.

        Raises:
            RunError: the folder holds a run already and `resume` is False, or it was made with
                another configuration. What may change on a resumption is written down under `before`.
        """
        target = self.path / "run.json"
        if target.exists():
            old = self.read()
            if not resume:
                raise RunError(f"{self.path}: holds a {old['kind']} run already; pass --resume or another --out")
            different = differing(old["config"], config, but_for=_CHANGEABLE)
            if old["kind"] != kind or different:
                raise RunError(f"{self.path}: was made with another configuration ({', '.join(different) or kind})")
            now = config.model_dump(mode="json")
            if old["config"] != now:
                again = {"resumed": time.time(), "config": old["config"]}
                write_json(target, {**old, "config": now, "before": [*old.get("before", []), again]})
            return
        self.path.mkdir(parents=True, exist_ok=True)
        values = config.model_dump(mode="json")
        write_json(target, {"kind": kind, "config": values, "started": time.time(), **environment()})

    def must_be(self, kind: str, config: Config) -> None:
        """Make sure that a finished run is the one that is asked for, before its figures are taken for another's.

        Stricter than a resumption: only processes, their memory and the time limit may differ.

        Raises:
            RunError: it was made with another configuration.
        """
        old = self.read()
        different = differing(old["config"], config, but_for={**_CHANGEABLE, "optim": set()})
        if old["kind"] != kind or different:
            raise RunError(f"{self.path}: was made with another configuration ({', '.join(different) or kind})")

    def read(self) -> dict[str, Any]:
        """The content of `run.json`."""
        try:
            found = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: not a run folder (run.json: {error})") from error
        return dict(found)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinities are written as null, which JSON readers accept."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`, in order."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def forget_after(self, step: int) -> None:
        """Drop metric lines of steps later than `step`, and a last line that a kill cut short."""
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
        beside = target.with_suffix(".partial")
        beside.write_text("".join(line + "\n" for line in kept))
        beside.replace(target)


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside the target and rename, so that readers never see half a file."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    beside.replace(path)
