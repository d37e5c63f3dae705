"""Load on the annotation desk: people judge over HTTP at once, on SQLite and on PostgreSQL.

Each of them asks for an item, loads its two pictures, waits for `--pause` seconds and answers. Without a pause the
server is saturated, and latencies show how long people queue. The server, the database and all people share this
machine.

Usage: python benchmarks/desk.py [--people N] [--seconds S] [--pause S] [--records N] [--databases sqlite postgresql]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from desks import POSTGRES, Client, new_data, postgres_server, process

from rewarddance.core.runs import environment


class Person(Client):
    """Judges until `until` and notes how long the server took, in seconds."""

    def __init__(self, link: str) -> None:
        limits = httpx.Limits(keepalive_expiry=2)  # the server closes idle connections after 5 s
        super().__init__(httpx.Client(base_url=link.split("/join/")[0], timeout=60, limits=limits), link)
        self.serving: list[float] = []
        self.answering: list[float] = []

    def run(self, until: float, pause: float) -> None:
        time.sleep(pause * random.random())  # people do not begin at the same moment
        while time.monotonic() < until:
            start = time.monotonic()
            item = self.next()["item"]
            self.serving.append(time.monotonic() - start)
            if item is None:
                return
            self.seen(item)
            time.sleep(pause)
            start = time.monotonic()
            saved = self.say(item, {"overall": {"choice": "first"}})
            self.answering.append(time.monotonic() - start)
            assert saved.status_code == 200, saved.text


def measure(url: str, data: Path, names: list[str], seconds: float, pause: float) -> dict[str, float]:
    """Judgements a second, and milliseconds (median and 95th percentile) to serve an item and to store an answer."""
    flags = ("--judgements", len(names), "--requests-per-minute", 1_000_000, "--invite", *names)
    with process(data, url, *flags) as (_, _, links):
        people = [Person(link) for name, link in links.items() if name != "admin"]
        begin = time.monotonic()
        with ThreadPoolExecutor(len(people)) as pool:
            for done in [pool.submit(person.run, begin + seconds, pause) for person in people]:
                done.result()
        took = time.monotonic() - begin
    answers = [t for person in people for t in person.answering]
    serving = [t for person in people for t in person.serving]
    figures = {"judgements": len(answers), "judgements_per_second": len(answers) / took}
    for name, times in (("serve", serving), ("answer", answers)):
        for share in (50, 95):
            figures[f"{name}_ms_p{share}"] = 1000 * float(np.percentile(times, share))
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    args = parser.parse_args()
    names = [f"p{i}" for i in range(args.people)]
    hardware, load = environment()["hardware"], os.getloadavg()[0]
    print(f"{args.people} people, pause {args.pause:g} s, {args.records} items, {args.seconds:g} s")
    print(f"{hardware['cpu']}, {hardware['cores']} cores, load average {load:.1f} before the start")
    for kind in args.databases:
        if kind == "postgresql" and not POSTGRES.is_dir():
            print(f"{kind}: no server in {POSTGRES}; left out")
            continue
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-")))
            data = new_data(folder / "data", records=args.records)
            url = f"sqlite:///{folder}/desk.db"
            if kind == "postgresql":
                url = stack.enter_context(postgres_server(folder / "server", fsync=True)).new()
            print(f"{kind}: {json.dumps(measure(url, data, names, args.seconds, args.pause))}", flush=True)


if __name__ == "__main__":
    main()
