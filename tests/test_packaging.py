"""Dependencies: bounds on both sides, and locks that keep to them."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def requirements():
    """Part (core, or an extra) → its requirements."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **settings: found.update(settings))
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    parts = {"core": found["install_requires"], **found["extras_require"]}
    return {part: [Requirement(line) for line in lines] for part, lines in parts.items()}


def test_every_dependency_has_two_bounds(requirements):
    for part, lines in requirements.items():
        for line in lines:
            operators = {specifier.operator for specifier in line.specifier}
            assert operators in ({"=="}, {">=", "<"}), f"{part}: {line}"


@pytest.mark.parametrize(
    "lock,parts", [("lock", ("core", "train", "serve")), ("full", ("convert", "beam"))]
)
def test_locks_pin_what_setup_admits(requirements, lock, parts):
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    pins = {name.lower().replace("_", "-"): version for name, version in pins}
    for part in parts:
        for line in requirements[part]:
            name = line.name.lower().replace("_", "-")
            assert line.specifier.contains(pins[name]), f"{line}: {lock}.txt has {pins[name]}"
