"""Judges behind HTTP: `rewarddance serve` in a process of its own, and a server whose answers the test sets."""

import json
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from desks import free_port
from processes import ended, started

PROMPT = "flat drawing of a red circle on white"


@contextmanager
def served_judge(port=None):
    """`rewarddance serve --judge tiny`, at a free port unless one is given. Yields its address."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = started_judge(port, Path(folder) / "log.txt")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.join(20)
            ended(process)


def started_judge(port, log):
    """The process of a judge that answers at this port and prints to the file `log`."""
    process = started(None, "serve", "--judge", "tiny", "--port", port, log=log)
    for _ in range(3000):
        assert process.exitcode is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/info", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return process
    ended(process)
    raise TimeoutError


class Moody(BaseHTTPRequestHandler):
    """Answers `POST /judge` by the next entry of `server.moods`; each entry is a status, or a JSON answer."""

    def do_GET(self):
        self.send(200, self.server.info)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.keys.append(self.headers["authorization"])
        mood = self.server.moods.pop(0)
        if mood == "slow":
            time.sleep(1.5)
            mood = 200
        self.send(mood, {"detail": "busy"}) if isinstance(mood, int) else self.send(200, mood)

    def send(self, status, content):
        body = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client did not wait

    def log_message(self, *args):
        pass


INFO = {
    "format": 1,
    "judge": "moody",
    "weights": "0",
    "criterion": "fidelity",
    "criteria": ["fidelity"],
    "precision": "fp32",
    "pointwise": False,
    "most_bytes": 1 << 20,
}
GOOD = {"margins": [1.5], "answer_mass": [1.0]}


@contextmanager
def moody(moods):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    server.moods, server.keys, server.info = list(moods), [], INFO
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
