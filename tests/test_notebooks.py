"""The notebooks run, and what is committed of them is small and of no machine."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

import bagpiper_jax

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
PATHS = re.compile(r"/(?:home|root|Users|tmp|usr|opt|mnt)/|[A-Z]:\\\\")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text(lines):
    return lines if isinstance(lines, str) else "".join(lines)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 5


@each
def test_what_is_committed_is_small_and_of_no_machine(path):
    assert path.stat().st_size < MAX_BYTES
    assert text(cells(path)[0]["source"]).startswith("# ")
    for cell in cells(path):
        assert not PATHS.search(text(cell["source"]))
        assert cell.get("execution_count") is None and not cell["metadata"]
        for output in cell.get("outputs", ()):
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            assert set(output.get("data", ())) <= {"image/png", "text/plain"}
            said = text(output.get("text", "")) + text(output.get("data", {}).get("text/plain", ""))
            assert not PATHS.search(said), said


@each
def test_without_a_clone_it_says_so(path, tmp_path, monkeypatch):
    """A notebook that reads files of the project tells that it needs them before all else."""
    code = [text(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]
    if not any("CLONE" in source for source in code):
        assert "no clone" in text(cells(path)[0]["source"])
        return
    monkeypatch.setattr(bagpiper_jax, "__file__", str(tmp_path / "bagpiper_jax" / "__init__.py"))
    with pytest.raises(bagpiper_jax.UserError, match="git clone it"):
        exec(code[0], {})


@pytest.mark.slow
@each
def test_it_runs(path, tmp_path):
    """From a clean kernel in an empty folder, on one CPU device and with all optimisations."""
    nbformat = pytest.importorskip("nbformat")
    run = runpy.run_path(str(ROOT / "notebooks" / "run.py"))["run"]
    env = os.environ | {"IPYTHONDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("XLA_FLAGS")  # of tests/conftest.py
    notebook = run(path, env)
    nbformat.validate(notebook)
    made = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert all(output.output_type != "error" for output in made)
    drawn = [output for output in made if "image/png" in output.get("data", ())]
    assert drawn or path.stem == "2_weights"
