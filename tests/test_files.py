"""Files appear whole or not at all."""

import pytest

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_json, write_text, write_whole


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
