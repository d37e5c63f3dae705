"""Real processes of one group, with the environment that `torchrun` gives them and without its own process."""

import os
import socket
import subprocess
import sys
import time


def run_processes(num, program, *args, timeout=300):
    """Run a Python file in `num` processes. If one fails, the others are ended and its errors are shown."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    logs = [program.with_suffix(f".{rank}.log") for rank in range(num)]
    processes = []
    for rank, log in enumerate(logs):
        env = os.environ | address | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as file:
            command = [sys.executable, str(program), *map(str, args)]
            processes.append(subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT))
    ends = time.monotonic() + timeout
    while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
        if time.monotonic() > ends:
            break
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.wait()
    assert [p.returncode for p in processes] == [0] * num, "\n".join(log.read_text()[-3000:] for log in logs)
