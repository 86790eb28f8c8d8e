"""What the curves of a run want of its log, and the minutes that its table tells."""

import json
import sys
from pathlib import Path

import pytest

from bagpiper_jax.errors import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import what_to_expect  # noqa: E402


def test_a_log_without_all_streams_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    row = dict.fromkeys(what_to_expect.WANTED, 1.0)
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2.0}))
    what_to_expect.curves(str(log), str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").stat().st_size
    del row["ce/stream7"], row["ce/audio"]
    log.write_text(json.dumps(row))
    monkeypatch.setattr(sys, "argv", ["what_to_expect.py", str(tmp_path), str(tmp_path / "out")])
    assert what_to_expect.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.jsonl lacks ce/audio, ce/stream7: name" in error
    log.write_text("")
    with pytest.raises(UserError, match="lacks step, ce/audio"):
        what_to_expect.curves(str(log), str(tmp_path / "curves.png"))


def test_minutes_of_checkpoints_are_told_where_the_log_tells_them(monkeypatch):
    monkeypatch.setattr(what_to_expect, "minutes", lambda run: {20: 2.0, 40: 6.0})
    assert what_to_expect.minutes_at("run", [10, 30, 40]) == ["1", "4", "6"]
    monkeypatch.setattr(what_to_expect, "minutes", lambda run: {})
    assert what_to_expect.minutes_at("run", [10, 30]) == ["", ""]
