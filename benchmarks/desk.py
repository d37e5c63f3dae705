"""Load on the annotation desk: people judge over HTTP at once, on SQLite and on PostgreSQL.

Each of them asks for an item, loads its two pictures and answers at once, without a pause; real people need seconds.
The server, the database and all people share this machine.

Usage: python benchmarks/desk.py [--people N] [--seconds S] [--records N] [--databases sqlite postgresql]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from desks import POSTGRES, Client, new_data, postgres_server, process

from rewarddance.apps.annotate.config import ServerConfig
from rewarddance.core.runs import environment


class Person(Client):
    """Judges until `until` and notes how long the server took, in seconds."""

    def __init__(self, link: str) -> None:
        super().__init__(httpx.Client(base_url=link.split("/join/")[0], timeout=60), link)
        self.serving: list[float] = []
        self.answering: list[float] = []

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            start = time.monotonic()
            item = self.next()["item"]
            self.serving.append(time.monotonic() - start)
            if item is None:
                return
            self.seen(item)
            start = time.monotonic()
            saved = self.say(item, {"overall": {"choice": "first"}})
            self.answering.append(time.monotonic() - start)
            assert saved.status_code == 200, saved.text


def measure(url: str, data: Path, names: list[str], seconds: float) -> dict[str, float]:
    """Judgements a second, and milliseconds (median and 95th percentile) to serve an item and to store an answer."""
    flags = ("--judgements", len(names), "--requests-per-minute", 1_000_000, "--invite", *names)
    with process(data, url, *flags) as (_, _, links):
        people = [Person(link) for name, link in links.items() if name != "admin"]
        begin = time.monotonic()
        threads = [threading.Thread(target=person.run, args=(begin + seconds,)) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
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
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    args = parser.parse_args()
    if args.people > ServerConfig().logins_per_minute:
        parser.error(f"--people: one address may log in {ServerConfig().logins_per_minute} people a minute")
    names = [f"p{i}" for i in range(args.people)]
    hardware = environment()["hardware"]
    print(
        f"{args.people} people, {args.records} items, {args.seconds:g} s; {hardware['cpu']}, {hardware['cores']} cores"
    )
    for kind in args.databases:
        if kind == "postgresql" and not POSTGRES.is_dir():
            print(f"{kind}: no server in {POSTGRES}; left out")
            continue
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-")))
            data = new_data(folder / "data", records=args.records)
            url = f"sqlite:///{folder}/desk.db"
            if kind == "postgresql":
                url = stack.enter_context(postgres_server(folder / "server", fsync=True))()
            print(f"{kind}: {json.dumps(measure(url, data, names, args.seconds))}", flush=True)


if __name__ == "__main__":
    main()
