"""The API reference is whole."""

import subprocess
import sys
from pathlib import Path

import pytest

import bagpiper_jax

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", bagpiper_jax.__all__)
def test_every_public_name_has_a_docstring(name):
    text = getattr(bagpiper_jax, name).__doc__ or ""
    # dataclasses and named tuples write their signature where there is none
    assert text.strip() and not text.startswith(f"{name}(")


@pytest.mark.slow
def test_the_reference_is_written_without_warnings(tmp_path):
    """Takes a minute: all modules are imported, and each has its page."""
    command = [sys.executable, "docs/api.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning:" not in done.stderr
    front = (tmp_path / "bagpiper_jax.html").read_text()
    for name in bagpiper_jax.__all__:
        assert f'id="{name}"' in front or f'href="bagpiper_jax/{name}.html"' in front, name
    sources = ROOT.glob("bagpiper_jax/**/*.py")
    modules = {str(s.relative_to(ROOT).with_suffix("")).removesuffix("/__init__") for s in sources}
    pages = {str(p.relative_to(tmp_path).with_suffix("")) for p in tmp_path.rglob("*.html")}
    assert modules - pages == {"bagpiper_jax/serving/page"}  # which `make docs` tells of
    assert "bagpiper_jax.serving.page" in done.stdout
    for page in tmp_path.rglob("*"):
        assert page.is_dir() or str(ROOT) not in page.read_text(), page
