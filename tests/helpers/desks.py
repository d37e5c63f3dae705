"""Desks on small pictures: data, a running application, people who judge, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import re
import shutil
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


def new_clip_data(folder, records=2, clips=None):
    """A data folder that names clips, which lie beside it in `secret`, as an import leaves them."""
    made = clips or [(clip(0), ".mp4"), (clip(1, (64, 48), 15, 10.0, ".webm"), ".webm")]
    (folder / "secret").mkdir(parents=True)
    rows = []
    for i in range(records):
        media = []
        for place, (content, suffix) in enumerate(made):
            path = f"secret/r{i}-{place}{suffix}"
            (folder / path).write_bytes(content)
            media.append(MediaRef("video", path, hash_of(content), f"secret-model-{place}"))
        rows.append(row_of_votes(VotedRecord(f"r{i}", f"a clip called r{i}", tuple(media))))
    write_rows(rows, folder / "train.parquet")
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
        self.filled = fill(self.database, folder, config or DeskConfig(checks=0, repeats=0))
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
        until = time.monotonic() + 300
        while True:
            assert started.poll() is None, f"the server ended with status {started.returncode}"
            assert time.monotonic() < until, "the server did not answer within 300 s"
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


@contextmanager
def postgres_server(folder, fsync=False):
    """A PostgreSQL server in a folder of its own. Yields a function that makes a new database and gives its URL."""
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    run = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if run:
        folder.parent.chmod(0o755)  # the other user must reach it
        shutil.chown(folder, user)
    port = free_port()
    data = folder / "data"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder}
    subprocess.run([*run, POSTGRES / "initdb", "-D", data, "-A", "trust", "-U", "desk", "--no-sync"], **quiet)
    how = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync={'on' if fsync else 'off'}"
    log = folder / "log"
    subprocess.run([*run, POSTGRES / "pg_ctl", "-D", data, "-l", log, "-w", "-o", how, "start"], **quiet)
    try:

        def new():
            name = f"d{uuid.uuid4().hex[:12]}"
            command = [POSTGRES / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "desk", name]
            subprocess.run(command, **quiet)
            return f"postgresql://desk@127.0.0.1:{port}/{name}"

        yield new
    finally:
        subprocess.run([*run, POSTGRES / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)
