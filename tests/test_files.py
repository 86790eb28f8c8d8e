"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import (
    make_directory,
    write_directory,
    write_json,
    write_text,
    write_whole,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def fail(error):
        def write(partial):
            with open(partial, "w") as file:
                file.write("ne")
            raise error

        return write

    with pytest.raises(UserError, match=f"cannot write {path}: No space left"):
        write_whole(path, fail(OSError(28, "No space left on device")))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail(KeyboardInterrupt()))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "none" / "x.json", {})
    with pytest.raises(UserError, match="cannot make the directory"):
        make_directory(tmp_path / "file" / "below")


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    def write(partial):
        (Path(partial) / "a").write_text("1")

    def fail(partial):
        write(partial)
        raise ValueError

    target, other = tmp_path / "x", tmp_path / "x.tmp"
    other.mkdir()  # somebody's
    (other / "precious").touch()
    with pytest.raises(ValueError):
        write_directory(target, fail)
    assert os.listdir(tmp_path) == ["x.tmp"]
    write_directory(target, write)
    assert (target / "a").read_text() == "1" and (other / "precious").exists()
    with pytest.raises(UserError, match="is there already and is not empty"):
        write_directory(target, write)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write_directory(tmp_path / "link", write)
    assert (tmp_path / "empty" / "a").exists()
    with pytest.raises(UserError, match="is no directory to write"):
        write_directory(target / "a", write)
    with pytest.raises(UserError, match="is a mounted disk"):
        write_directory("/", write)
    with pytest.raises(UserError, match="needs .* GB, there are .* GB free"):
        write_directory(tmp_path / "big", write, num_bytes=10**18)
    assert sorted(os.listdir(tmp_path)) == ["empty", "link", "x", "x.tmp"]
