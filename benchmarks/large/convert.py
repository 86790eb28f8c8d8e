"""Converts a full-size random checkpoint through all forms and measures memory and speed.

    python benchmarks/large/convert.py --dir /scratch [--numbers]

Writes an 18 GB `.pt` of random bfloat16 weights, converts `.pt` → safetensors → Orbax → `.pt` with
the command line, and compares every tensor of every stage with what was written first. Stages are
deleted once they are compared. For each conversion: the largest anonymous memory (RssAnon) of any
of its processes, and its rate beside that of copying the source file. Fails at more than 4 GB, or
at less than half of that rate. Needs 2.2 times the file's size on the disk and PyTorch. `--numbers`
also runs both sides of the first conversion.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.xcodec_model import XCodecConfig
from bagpiper_jax.porting.convert import compare
from bagpiper_jax.porting.espnet import VOCAB_WEIGHT, abstract, to_espnet
from bagpiper_jax.porting.runs import open_run
from bagpiper_jax.porting.sources import LazyTensor, open_checkpoint
from bagpiper_jax.porting.writers import write_torch

BLOCK = 1 << 24
MAX_BYTES, MIN_RATIO = 4 * 2**30, 0.5


def random_tensors(config):
    """name → random tensor, the same ones every time, made when asked for."""
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32) * np.float32(0.02)
    block = block.astype(ml_dtypes.bfloat16)

    def make(shape, number):
        size, first = math.prod(shape), number * 104_729 % BLOCK
        repeats = -(-(first + size) // BLOCK)
        return np.tile(block, repeats)[first : first + size].reshape(shape)

    found = {}
    for number, (name, tensor) in enumerate(to_espnet(*abstract(config, XCodecConfig())).items()):
        shape = tensor.shape
        found[name] = LazyTensor(shape, block.dtype, lambda s=shape, n=number: make(s, n))
    weights = config.vocab.token_weights()
    found[VOCAB_WEIGHT] = LazyTensor(weights.shape, weights.dtype, lambda: weights)
    return found


def anonymous(pid):
    """Anonymous memory of a process, bytes."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next(int(x.split()[1]) * 1024 for x in file if x.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def family(pid):
    """A process and its descendants."""
    found = [pid]
    for one in found:
        try:
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children", encoding="ascii") as file:
                    found += map(int, file.read().split())
        except OSError:
            pass
    return found


def watched(arguments, workdir):
    """Runs `bagpiper` → (seconds until all is on the disk, peak of RssAnon, output)."""
    start, peak = time.monotonic(), 0
    code = "import sys; from bagpiper_jax.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=workdir,
    )
    while process.poll() is None:
        peak = max([peak, *map(anonymous, family(process.pid))])
        time.sleep(0.05)
    os.sync()
    output = process.stdout.read()
    if process.returncode:
        sys.exit(f"bagpiper {' '.join(arguments)} failed")
    return time.monotonic() - start, peak, output


def size_of(path):
    """Bytes of a file or directory."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)


def remove(path):
    """Deletes a file or directory."""
    shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def copy_rate(path, workdir):
    """Bytes a second of copying a file or directory."""
    target = os.path.join(workdir, "copy")
    start = time.monotonic()
    shutil.copytree(path, target) if os.path.isdir(path) else shutil.copyfile(path, target)
    os.sync()
    seconds = time.monotonic() - start
    remove(target)
    return size_of(path) / seconds


def main():
    """All stages, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="where the files go; they are deleted")
    parser.add_argument("--numbers", action="store_true", help="run both sides of the first one")
    args = parser.parse_args()
    config = get_config("bagpiper_8b")
    tensors = random_tensors(config)
    os.makedirs(args.dir, exist_ok=True)
    a, b, c, d = (os.path.join(args.dir, name) for name in ("a.pt", "b", "c", "d.pt"))
    start = time.monotonic()
    write_torch(a, tensors)
    print(f"{a}: {size_of(a) / 1e9:.2f} GB in {time.monotonic() - start:.0f} s", flush=True)
    failed = []
    served = {name: t for name, t in tensors.items() if name != VOCAB_WEIGHT}
    print("| | seconds | GB/s | copy, GB/s | ratio | peak RssAnon, GB |\n|---|---|---|---|---|---|")
    for source, target, to in ((a, b, "safetensors"), (b, c, "orbax"), (c, d, "espnet")):
        copied = copy_rate(source, args.dir)
        seconds, peak, _ = watched(["convert", source, target, "--to", to], args.dir)
        rate = size_of(target) / seconds
        print(
            f"| {os.path.basename(source)} → {to} | {seconds:.0f} | {rate / 1e9:.2f} "
            f"| {copied / 1e9:.2f} | {rate / copied:.2f} | {peak / 1e9:.2f} |",
            flush=True,
        )
        failed += [f"{to}: {peak / 1e9:.2f} GB"] * (peak > MAX_BYTES)
        failed += [f"{to}: {rate / copied:.2f} of the copy rate"] * (rate < MIN_RATIO * copied)
        if to == "orbax":
            written = open_run(target, config)
        else:
            written = open_checkpoint(target)
        compare(target, tensors if to == "espnet" else served, written)
        if args.numbers and to == "safetensors":
            shutil.rmtree(target)
            _, peak, output = watched(["convert", source, target, "--to", to, "--verify"], args.dir)
            print(f"with --verify: peak RssAnon {peak / 1e9:.2f} GB\n{output}", flush=True)
            failed += [f"--verify: {peak / 1e9:.2f} GB"] * (peak > MAX_BYTES)
        remove(source)
    remove(d)
    print("every tensor of every stage as it was written first")
    if failed:
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    main()
