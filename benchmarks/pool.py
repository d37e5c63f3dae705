"""Pictures a second of `data build --prompts`: one and two local processes, and Ray with two actors.

Usage: python benchmarks/pool.py [--prompts 64] [--images 2] [--engines local-1 local-2 ray-2]

The shipped generator draws its pictures of 48x48 pixels in 20 steps. Times are wall-clock times of whole commands, with
the start of Python, the loading of the generator and the start of Ray. `drawing` leaves out the time until the first
part is claimed. The pictures of all engines are compared. By default Ray gives its workers a lower priority (niceness
15), so other programs would slow them down; here they have the priority of the local engine. The memory is the peak
resident size of the largest process so far; compare calls with one engine and different numbers of prompts.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rewarddance.core.runs import environment
from rewarddance.data.parquet import voted_records

ENGINES = {"local-1": (1, []), "local-2": (2, []), "ray-2": (1, ["--engine", "ray", "--actors", "2"])}
"""Number of processes that are started, and their flags."""


def build(name: str, prompts: Path, out: Path, images: int) -> tuple[float, float]:
    """Seconds of the whole build, and from the first claim of a part."""
    processes, flags = ENGINES[name]
    command = [sys.executable, "-m", "rewarddance", "data", "build", "--prompts", str(prompts), "--out", str(out)]
    command += ["--images-per-prompt", str(images), *flags]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    variables = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
    began, claimed = time.perf_counter(), None
    running = [subprocess.Popen(command, env=variables, **quiet) for _ in range(processes)]
    while any(p.poll() is None for p in running):
        if claimed is None and list(out.glob(".parts/*/.rows.parquet.partial")):
            claimed = time.perf_counter()
        time.sleep(0.02)
    ended = time.perf_counter()
    if any(p.returncode for p in running):
        raise SystemExit(f"{name}: a process failed")
    return ended - began, ended - (claimed or began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--folder", type=Path, help="folder for the pictures; a temporary one by default")
    args = parser.parse_args()
    print(environment()["hardware"])
    pictures, hashes = args.prompts * args.images, set()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        prompts = Path(place) / "prompts.txt"
        prompts.write_text("\n".join(f"flat drawing of a red circle on white, number {i}" for i in range(args.prompts)))
        for name in args.engines:
            whole, drawing = build(name, prompts, Path(place) / name, args.images)
            rows = voted_records(Path(place) / name / "train.parquet", pictures=False)
            hashes.add(tuple(m.sha256 for row in rows for m in row.media))
            size = sum(f.stat().st_size for f in (Path(place) / name).glob("*.parquet"))
            print(
                f"{name:<8} {pictures} pictures in {whole:.0f} s, {pictures / whole:.1f}/s; drawing "
                f"{pictures / drawing:.1f}/s; load average {os.getloadavg()[0]:.1f}; "
                f"{size / pictures:,.0f} bytes a picture; peak "
                f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:,.0f} MiB",
                flush=True,
            )
    print("equal pictures" if len(hashes) == 1 else "DIFFERENT pictures")


if __name__ == "__main__":
    main()
