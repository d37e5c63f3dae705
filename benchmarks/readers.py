"""Rows a second of every reader of preference files, without opening pictures, and of a whole import.

Usage: python benchmarks/readers.py [--rows 2000]

The files are in the public layouts (`support/layouts.py`), with pictures of 24x24. An import also opens every picture,
hashes it and writes Parquet.
"""

import argparse
import tempfile
import time
from pathlib import Path

from support.layouts import LAYOUTS

from rewarddance.core.runs import environment
from rewarddance.data.drafts import Draft
from rewarddance.data.importers import import_preferences
from rewarddance.data.names import FORMATS
from rewarddance.data.readers import drafts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000)
    args = parser.parse_args()
    print(environment()["hardware"])
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            source = LAYOUTS[name](folder, args.rows)
            began = time.process_time()
            read = sum(isinstance(draft, Draft) for _, draft in drafts(source, name))
            reading = time.process_time() - began
            began = time.process_time()
            report = import_preferences(source, name, folder, folder / "out", criteria=("overall", "style", "fidelity"))
            importing = time.process_time() - began
            rates = f"{args.rows / reading:>9,.0f} rows/s read, {args.rows / importing:>7,.0f} rows/s imported"
            print(f"{name:<14} {rates} ({read} records, {report.accepted} imported)", flush=True)


if __name__ == "__main__":
    main()
