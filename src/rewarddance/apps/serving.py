"""`rewarddance serve`: its flags."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rewarddance.apps.commands import JudgeFlags
from rewarddance.apps.flags import Count, need
from rewarddance.core.errors import ConfigError
from rewarddance.core.progress import say


@dataclass(frozen=True, kw_only=True)
class Serve(JudgeFlags):
    """Serve a judge over HTTP, for `--judge http://HOST:PORT` of other commands. Ctrl-C stops the server.

    If the environment variable REWARDDANCE_JUDGE_KEY is set, the server answers only requests with this key. Set it on
    both sides. Comparisons and pictures come as JSON, and margins go back; /docs of the server describes the format.

    The server also answers the reward calls of other trainers: POST /score of UniRL, whose required_rewards are the
    judge's criteria (GET /health lists them), and POST /compute of Flow-Factory. Both need a judge that can judge a
    sample alone, and get its log-odds. A sample that failed has a reason and no number. These trainers send no key.

    Example: rewarddance serve --judge runs/judge --port 8600
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. Put a proxy with TLS before a public one."""
    port: Count = 8600

    def run(self) -> None:
        from rewarddance.reward.remote import KEY, is_address

        try:
            import uvicorn

            from rewarddance.apps.judge_server import create_app, info_of
        except ModuleNotFoundError as error:
            raise ConfigError(f"serve needs {error.name}: pip install 'rewarddance[web]'") from None
        need(self.criterion is None, "serve: --criterion comes with each question, so the server takes none")
        need(not is_address(self.judge), f"serve: {self.judge} is served already")
        judge = self.load(compile=True)
        key = os.environ.get(KEY) or None
        if key is None and self.host not in ("127.0.0.1", "localhost", "::1"):
            say(f"everybody who reaches {self.host}:{self.port} may ask; set {KEY} to demand a key")
        app = create_app(judge, info_of(self.judge, judge), key)
        say(f"judge {self.judge} at http://{self.host}:{self.port}")
        uvicorn.run(app, host=self.host, port=self.port, access_log=False, log_level="warning", server_header=False)
