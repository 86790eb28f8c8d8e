"""Two processes of this machine as one run; the tests of several hosts share it."""

import os
import socket
import subprocess
import sys
import time

from tiny_run import CONFIG, TINY


def together(make, limit, meanwhile=lambda processes: None):
    """Exit code and log of each of two processes, and the seconds that they took.

    Args:
      make: (address, number of the process) → its arguments for Python.
      limit: seconds after which both are killed.
      meanwhile: called with both, once they are started.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    # one device each; the other flags make compiling fast
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    env = os.environ | {"XLA_FLAGS": " ".join(flags)}
    since = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, *make(address, i)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        meanwhile(processes)
        logs = [process.communicate(timeout=limit)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return codes, logs, time.monotonic() - since


def train_arguments(address, process, workdir, *overrides):
    """Of `bagpiper train` for one of the two, on one device each."""
    run = ["train", "--config", CONFIG, *TINY, "--workdir", str(workdir)]
    run += ["--config.mesh.fsdp=-1", "--config.mesh.tensor=1", *overrides]
    return [*run, "--coordinator", address, "--num-processes", "2", "--process-id", str(process)]
