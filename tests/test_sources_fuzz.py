"""Sources whose files are damaged at random: reading ends, in little memory, and tells of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = {"jsonl": 200, "folder": 100, "parquet": 150, "webdataset": 200, "tfds": 40}


@pytest.mark.parametrize("kind", ROUNDS)
def test_random_damage(tmp_path, kind):
    script = Path(__file__).with_name("fuzz_sources.py")
    command = [sys.executable, str(script), kind, str(tmp_path / "set"), str(ROUNDS[kind])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["told"] > ROUNDS[kind] / 4, result
    assert result["grown_mb"] < 300 and result["slowest"] < 5, result
