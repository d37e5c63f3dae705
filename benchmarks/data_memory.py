"""Peak memory and rows a second of `data import` and `data stats`, for two numbers of rows.

Usage: python benchmarks/data_memory.py [--rows 1000 4000] [--pictures 300] [--folder DIR] [--links | --tables]

Each command runs in a process of its own, which prints its own peak resident size (`resource.getrusage`). Every two
rows have a prompt of their own and two of the pictures; each row has one vote of one of 50 annotators. The pictures
have 24x24 pixels. `--links` names clips by links in their place. An import never opens links, so it is faster, and
every row is still read, checked, counted and written. `--tables` opens no pictures and writes no files: it fills the
tables that grow with the rows, which takes seconds for 50,000 rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rewarddance.core.runs import environment


def write_pictures(folder: Path, num: int) -> None:
    """Pictures of 6x6 blocks of random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        blocks = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(folder / f"{i}.png")


def pictures_of(pair: int, num_pictures: int) -> tuple[int, int]:
    """Two different pictures."""
    a = pair % num_pictures
    return a, (a + 1 + pair // num_pictures % (num_pictures - 1)) % num_pictures


def write_votes(path: Path, num_rows: int, num_pictures: int, name: str = "pictures/{}.png") -> None:
    """Own rows of JSONL; two rows judge the same pair. `name` is a picture's or clip's path or link, by its number."""
    with path.open("w") as file:
        for i in range(num_rows):
            pair = i // 2
            a, b = pictures_of(pair, num_pictures)
            row = {
                "id": f"row-{i}",
                "prompt": f"a picture that was asked for in prompt number {pair}",
                "image_a": name.format(a),
                "image_b": name.format(b),
                "label": ("a", "b", "tie")[i % 3],
                "annotator": f"person-{i % 50}",
                "seconds": 3.5,
                "shown": ("ab", "ba")[i % 2],
            }
            file.write(json.dumps(row) + "\n")


def measure(what: str, folder: Path, num_rows: int) -> dict[str, float]:
    """Run one command in a new process.

    Returns its peak in MiB, its seconds, those of processor time, and its rows a second of processor time.
    """
    command = [sys.executable, __file__, "--child", what, "--folder", str(folder)]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - began
    processor, peak = (float(word) for word in done.stdout.split()[-2:])
    return {"MiB": peak, "s": seconds, "processor s": processor, "rows/s": num_rows / processor}


def child(what: str, folder: Path) -> None:
    if what == "import":
        from rewarddance.data.importers import import_preferences

        import_preferences(folder / "votes.jsonl", "jsonl", folder, folder / "out")
    elif what == "stats":
        from rewarddance.data.stats import data_stats

        data_stats(folder / "out")
    else:  # the modules alone
        import rewarddance.data.importers
        import rewarddance.data.stats  # noqa: F401
    print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def tables(num_rows: int, num_pictures: int) -> None:
    """Fill the tables of an import and of statistics, and print by how much the resident size grows."""
    from rewarddance.data.importers import ChoiceCounter
    from rewarddance.data.schema import hash_of
    from rewarddance.data.stats import Judged, Looked, summary
    from rewarddance.data.votes import MediaRef, VotedRecord, choice

    names = [hash_of(str(i).encode()) for i in range(num_pictures)]
    keys = {name: name for name in names}

    def records() -> Iterator[VotedRecord]:
        for i in range(num_rows):
            a, b = pictures_of(i // 2, num_pictures)
            vote = choice((1.0, 0.0, 0.5)[i % 3], annotator=f"person-{i % 50}", seconds=3.5, shown=(0, 1))
            media = (MediaRef(sha256=names[a]), MediaRef(sha256=names[b]))
            yield VotedRecord(f"row-{i}", f"a picture that was asked for in prompt number {i // 2}", media, (vote,))

    began, counter = resident(), ChoiceCounter()
    for record in records():
        counter.add(record)
    print(f"{num_rows:>9,} rows  table of an import     {resident() - began:>6,.0f} MiB", flush=True)
    began, judged, looked = resident(), Judged(), Looked()
    for record in records():
        judged.add(record)
        looked.add(record, keys)
    print(f"{num_rows:>9,} rows  tables of statistics   {resident() - began:>6,.0f} MiB", flush=True)
    summary(judged)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{num_rows:>9,} rows  the same with figures  {peak - began:>6,.0f} MiB", flush=True)


def resident() -> float:
    """Resident size of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 4_000])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="folder for the files of the benchmark; a temporary one by default")
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--child", choices=("nothing", "import", "stats"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.folder)
        return
    print(environment()["hardware"])
    if args.tables:
        for num_rows in args.rows:
            tables(num_rows, args.pictures)
        return
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as place:
            folder = Path(place)
            if args.links:
                write_votes(folder / "votes.jsonl", num_rows, args.pictures, "https://clips.example/{}.mp4")
            else:
                write_pictures(folder / "pictures", args.pictures)
                write_votes(folder / "votes.jsonl", num_rows, args.pictures)
            for what in ("nothing", "import", "stats"):
                result = measure(what, folder, num_rows)
                times = f"{result['s']:>6,.0f} s, {result['processor s']:>6,.0f} s of processor time"
                rate = "" if what == "nothing" else f", {times}, {result['rows/s']:>7,.0f} rows/s of it"
                print(f"{num_rows:>9,} rows  data {what:<8} peak {result['MiB']:>7,.0f} MiB{rate}", flush=True)


if __name__ == "__main__":
    main()
