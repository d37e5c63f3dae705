"""Desks on small pictures: data, a running application, people who judge, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from rewarddance.apps.annotate import auth
from rewarddance.apps.annotate.app import create_app
from rewarddance.apps.annotate.config import DeskConfig, ServerConfig
from rewarddance.apps.annotate.database import open_database
from rewarddance.apps.annotate.export import voted_records
from rewarddance.apps.annotate.filling import fill
from rewarddance.core.clips import encode_clip
from rewarddance.data.schema import hash_of, row_of_votes
from rewarddance.data.shards import write_rows
from rewarddance.data.votes import MediaRef, VotedRecord

_SERVERS = (program.parent for program in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
POSTGRES = max(_SERVERS, default=Path("no-postgresql"), key=lambda folder: int(folder.parent.name))
"""Programs of the newest PostgreSQL server, where Debian puts them."""


def picture(value, seed=0, side=16):
    """A PNG with a secret in its metadata; its brightness is `value` in [0, 1]."""
    rng = np.random.default_rng([seed, int(value * 1000)])
    pixels = np.clip(value * 255 + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "model: secret-model-b")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def brightness(png):
    """Mean pixel of a picture, in [0, 1]."""
    return float(np.asarray(Image.open(io.BytesIO(png))).mean() / 255)


def new_record(name, values, prompt=None, models=None, groups=None):
    media = []
    for place, value in enumerate(values):
        data = picture(value, seed=place)
        model = models[place] if models else "secret-model-a"
        media.append(MediaRef(path=f"secret/path-{place}.png", sha256=hash_of(data), model=model, data=data))
    return VotedRecord(name, prompt or f"a picture called {name}", tuple(media), groups=groups or {})


def new_data(folder, records=8, pictures=2):
    """A data folder without votes; the first picture of every record is the brightest."""
    rows = [
        row_of_votes(new_record(f"r{i}", [0.8 - 0.15 * k + 0.01 * (i % 7) for k in range(pictures)]))
        for i in range(records)
    ]
    write_rows(rows, folder / "train.parquet")
    return folder


def clip(place, size=(48, 64), frames=16, fps=8.0, suffix=".mp4"):
    """A clip of a square that moves, with a secret in its metadata where the container holds any."""
    import av

    height, width = size
    pixels = np.full((frames, height, width, 3), 40 + 60 * place, np.uint8)
    for k in range(frames):
        pixels[k, 8:24, 2 * k : 2 * k + 16] = (220, 40, 60)
    content = encode_clip(pixels, fps, Path(f"clip{suffix}"))
    if suffix == ".gif":
        return content
    buffer, form = io.BytesIO(), suffix[1:]
    with av.open(io.BytesIO(content)) as source, av.open(buffer, "w", format=form) as target:
        target.metadata["comment"] = "model: secret-model-b"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()


def new_clip_data(folder, records=2, clips=None, given=()):
    """A data folder that names clips, which lie beside it in `secret`, as an import leaves them.

    `given`: the pictures that the clips of every record were made from.
    """
    made = clips or [(clip(0), ".mp4"), (clip(1, (64, 48), 15, 10.0, ".webm"), ".webm")]
    (folder / "secret").mkdir(parents=True)
    rows = []
    for i in range(records):
        media = []
        for place, (content, suffix) in enumerate(made):
            path = f"secret/r{i}-{place}{suffix}"
            (folder / path).write_bytes(content)
            media.append(MediaRef("video", path, hash_of(content), f"secret-model-{place}"))
        names = [f"secret/given-{k}.png" for k in range(len(given))]
        media += [
            MediaRef("image", name, hash_of(content), role="condition", data=content)
            for name, content in zip(names, given, strict=True)
        ]
        rows.append(row_of_votes(VotedRecord(f"r{i}", f"a clip called r{i}", tuple(media))))
    write_rows(rows, folder / "train.parquet")
    return folder


def samples(folder, level, prompts):
    """A folder as `sample` writes it; `level` is the brightness of its pictures."""
    folder.mkdir(parents=True)
    listed = []
    for i, prompt in enumerate(prompts):
        noise = np.random.default_rng([i, int(1000 * level)]).normal(0, 20, (16, 16, 3))
        pixels = np.clip(255 * level + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        listed.append({"file": f"{i:03d}.png", "prompt": prompt})
    (folder / "samples.json").write_text(json.dumps(listed))
    return folder


class Clock:
    """A clock that tests move."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


class Client:
    """A person at a desk, over HTTP."""

    def __init__(self, http, link=None):
        self.http = http
        if link:
            answer = http.post(link, follow_redirects=False)
            assert answer.status_code == 303, answer.text
            page = http.get("/", follow_redirects=True).text
            self.csrf = re.search(r'(?:data-csrf|name="csrf" value)="([^"]+)"', page)[1]

    def post(self, path, body=None, **headers):
        return self.http.post(path, json=body or {}, headers={"X-CSRF-Token": self.csrf, **headers})

    def form(self, path, **values):
        return self.http.post(path, data={"csrf": self.csrf, **values}, follow_redirects=True)

    def next(self):
        answer = self.post("/api/next")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def seen(self, item):
        """The pictures of an item, as PNG."""
        return [self.http.get(f"/media/{token}").content for token in item["media"]]

    def say(self, item, answers, key=None):
        body = {"assignment": item["assignment"], "answers": answers, "key": key or str(uuid.uuid4()), "seconds": 1.5}
        return self.post("/api/judgements", body)

    def judge(self, item, chooser=None):
        """Choose the brighter picture, or what `chooser(pictures)` gives."""
        answer = (chooser or brighter)(self.seen(item))
        saved = self.say(item, {name: dict(answer) for name in item["criteria"]})
        assert saved.status_code == 200, saved.text
        return answer

    def work(self, chooser=None, most=1000):
        """Judge until nothing is left. Returns how many items it was."""
        for count in range(most):
            item = self.next()["item"]
            if item is None:
                return count
            self.judge(item, chooser)
        return most


def brighter(pictures):
    left, right = map(brightness, pictures)
    return {"choice": "first" if left > right else "second", "strength": 0.5}


class DeskServer:
    """An application in this process, with its database and a clock."""

    def __init__(self, folder, url, config=None, server=None):
        self.url, self.clock, self.server = url, Clock(), server or ServerConfig(requests_per_minute=10_000)
        self.database = open_database(url)
        try:
            self.filled = fill(self.database, folder, config or DeskConfig(checks=0, repeats=0))
        except Exception:
            self.database.close()
            raise
        self.app = create_app(self.database, self.server, self.clock)

    def link(self, name="ada", role=auth.ANNOTATOR):
        now = self.clock()
        with self.database.write() as session:
            person = auth.admin_of(session, now) if role == auth.ADMIN else auth.new_person(session, name, role, now)
            return f"/join/{auth.invite(session, person, self.server, now)}"

    def http(self):
        return TestClient(self.app, base_url="http://desk.test", raise_server_exceptions=False)

    def person(self, name="ada"):
        return Client(self.http(), self.link(name))

    def admin(self):
        return Client(self.http(), self.link(role=auth.ADMIN))


def export(desk):
    with desk.database.read() as session:
        return list(voted_records(session))


def free_port():
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def process(data, url, *flags, port=None):
    """`rewarddance annotate` in a process of its own. Yields (process, base URL, links by name)."""
    port = port or free_port()
    command = [sys.executable, "-m", "rewarddance", "annotate", str(data), "--database", url, "--port", str(port)]
    started = subprocess.Popen([*command, *map(str, flags)], stdout=subprocess.PIPE, text=True)
    try:
        links = {}
        base = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 900
        while True:
            assert started.poll() is None, f"the server ended with status {started.returncode}"
            assert time.monotonic() < until, "the server did not answer within 900 s"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(base, timeout=10).status_code == 401:
                    break
            time.sleep(0.1)
        os.set_blocking(started.stdout.fileno(), False)
        for line in (started.stdout.read() or "").splitlines():
            name, _, link = line.partition(": ")
            links[name] = link
        yield started, base, links
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


class Postgres:
    """A PostgreSQL server in a folder of its own. Root starts it as the user `postgres`, since initdb refuses root."""

    def __init__(self, folder, fsync=False):
        self.folder, self.port = Path(folder), free_port()
        user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self.run = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.run:
            self.folder.parent.chmod(0o755)  # the other user must reach it
            shutil.chown(self.folder, user)
        self.fsync = "on" if fsync else "off"
        self.call("initdb", "-D", self.folder / "data", "-A", "trust", "-U", "desk", "--no-sync")

    def call(self, program, *args):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": self.folder, "text": True}
        done = subprocess.run([*self.run, POSTGRES / program, *map(str, args)], **quiet)
        log = self.folder / "log"
        assert done.returncode == 0, f"{program}: {done.stderr}{log.read_text()[-2000:] if log.is_file() else ''}"

    def control(self, *args):
        self.call("pg_ctl", "-D", self.folder / "data", "-t", 300, *args)

    def start(self):
        how = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync={self.fsync}"
        self.control("-l", self.folder / "log", "-w", "-o", how, "start")

    def kill(self):
        """SIGKILL to the server and all its processes."""
        main = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        # stopped, so that it starts no process while they are listed; one that is not killed would keep shared memory
        os.kill(main, signal.SIGSTOP)
        own = [main, *(pid for pid, parent in parents() if parent == main)]
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while any(pid in own for pid, _ in parents()):
            assert time.monotonic() < until, "PostgreSQL did not end"
            time.sleep(0.05)
        # If process 1 does not wait for its children, the dead server stays as a zombie. With these files left, the
        # next server would think that the dead one still runs.
        for lock in (self.folder / "data" / "postmaster.pid", self.folder / f".s.PGSQL.{self.port}.lock"):
            lock.unlink()

    def new(self):
        """A new database. Returns its URL."""
        name = f"d{uuid.uuid4().hex[:12]}"
        self.call("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "desk", name)
        return f"postgresql://desk@127.0.0.1:{self.port}/{name}"


def parents():
    """(process, its parent) of all processes that are alive."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                yield int(stat.parent.name), int(parent)


@contextmanager
def postgres_server(folder, fsync=False):
    """A PostgreSQL server that runs."""
    server = Postgres(folder, fsync)
    server.start()
    try:
        yield server
    finally:
        server.control("-m", "immediate", "stop")
