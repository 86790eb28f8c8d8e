"""A pod on one machine: several processes of one run, on CPU, that talk as hosts do (gloo).

    python experiments/local_pod.py --processes 2 --devices 4 -- \\
        --config experiments/mini.py --config.mesh.fsdp=-1 --config.data.batch_tokens=4096 \\
        --workdir runs/pod

What follows `--` goes to `bagpiper train`. The first failure ends all of them; SIGTERM is
passed on to all, which save and end.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time


def main() -> int:
    """Command line entry; returns the exit code of the first process that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4, help="of each process")
    parser.add_argument("arguments", nargs="*", help="of bagpiper train, after --")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={args.devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "bagpiper_jax.cli", "train", "--coordinator", address]
    command += ["--num-processes", str(args.processes), *args.arguments]
    running = [
        subprocess.Popen([*command, "--process-id", str(i)], env=environment)
        for i in range(args.processes)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in running])
    try:
        while any(process.poll() is None for process in running):
            failed = [process.returncode for process in running if process.returncode]
            if failed:
                return failed[0]
            time.sleep(0.2)
        return next((process.returncode for process in running if process.returncode), 0)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
