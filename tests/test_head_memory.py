"""The head's memory at the shapes of the 8B model, as `benchmarks/head.py` compiles it."""

import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.join(os.path.dirname(__file__), "..")
SHAPES = {"rows": 8192, "hidden": 4096, "text": 151_936, "codes": 1024}


@pytest.mark.slow
def test_the_head_takes_a_tenth_of_the_memory_of_the_expanded_form():
    """Nothing runs, and no array of these sizes is made."""
    sizes = [x for name, size in SHAPES.items() for x in (f"--{name}", str(size))]
    done = subprocess.run(
        [sys.executable, "benchmarks/head.py", *sizes, "--compile-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\w+) +(\d+) MiB temporary", done.stdout, re.M)
    memory = {name: int(size) for name, size in found}
    # those of eight streams, of which seven are over the codec ids alone, for the backward pass
    logits = 8192 * (160_392 + 7 * 8200) * 4 / 2**20
    assert memory["expanded"] > logits and memory["fused"] > 0
    assert memory["expanded"] >= 10 * memory["fused"], done.stdout
