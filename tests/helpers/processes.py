"""Processes of their own that need not import the program again: a server that has imported it once forks them."""

import multiprocessing
import os
import runpy
import socket
import sys
import time

IMPORTED = [
    "rewarddance.apps.cli",
    "rewarddance.apps.judge_server",
    "rewarddance.generator.sd3",
    "rewarddance.jobs.align",
    "rewarddance.jobs.train",
    "rewarddance.vlm.registry",
]
"""Modules that the server has imported, which are most of what the programs of tests import."""


def started(program, *args, log, errors=None, env=None):
    """A process that runs a Python file, or the command line if `program` is None. It prints to the file `log`, and
    writes its errors there too or to the file `errors`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    logs = (str(log), str(errors or log))
    given = (program and str(program), [str(a) for a in args], logs, dict(os.environ) | (env or {}))
    process = context.Process(target=_run, args=given)
    process.start()
    return process


def _run(program, args, logs, env):
    for stream, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [program or "rewarddance", *args]
    if program is None:
        from rewarddance.apps.cli import main

        sys.exit(main(args))
    runpy.run_path(program, run_name="__main__")


def ended(process):
    """Kill a process if it has not ended, and return its exit status."""
    process.kill()
    process.join()
    return process.exitcode


def run_processes(num, program, *args, timeout=300):
    """Run a Python file in `num` processes of one group, with the environment that `torchrun` gives them and without
    its own process. If one fails, the others are ended and its errors are shown."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    logs = [program.with_suffix(f".{rank}.log") for rank in range(num)]
    processes = []
    for rank, log in enumerate(logs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(started(program, *args, log=log, env=address | sizes | own))
    ends = time.monotonic() + timeout
    while any(p.exitcode is None for p in processes) and not any(p.exitcode for p in processes):
        if time.monotonic() > ends:
            break
        time.sleep(0.02)
    statuses = [ended(process) for process in processes]
    assert statuses == [0] * num, "\n".join(log.read_text()[-3000:] for log in logs)
