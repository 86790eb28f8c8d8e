"""Imports point the way that docs/contributing.md says."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
LAYERS = [line.split() for line in re.search("```imports\n(.*?)```", PAGE, re.S)[1].splitlines()]
HEIGHT = {unit: -depth for depth, layer in enumerate(LAYERS) for unit in layer}


def sources(root):
    """Module, less `bagpiper_jax.`, → its syntax tree."""
    found = {}
    for path in sorted((root / "bagpiper_jax").rglob("*.py")):
        parts = path.relative_to(root / "bagpiper_jax").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    del found[""]  # resolves its names late, from everywhere
    return found


def imported(tree):
    """Dotted names that a module imports, and whether its own import does it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((f"{node.module}.{alias.name}", node in tree.body) for alias in node.names)


def inner(trees):
    """Module → modules of the library that it imports."""
    graph = {}
    for module, tree in trees.items():
        graph[module] = set()
        for name, _ in imported(tree):
            package, _, name = name.partition(".")
            while package == "bagpiper_jax" and name and name not in trees:
                name = name.rpartition(".")[0]
            if package == "bagpiper_jax" and name:
                graph[module].add(name)
    return graph


def unit_of(module):
    """The longest entry of the list that names a module."""
    while module and module not in HEIGHT:
        module = module.rpartition(".")[0]
    return module


def offences(trees):
    """What the list does not allow, a line each."""
    found = [f"{m} stands nowhere in docs/contributing.md" for m in trees if not unit_of(m)]
    for module, others in inner(trees).items():
        for other in others:
            here, there = unit_of(module), unit_of(other)
            if here and there and here != there and HEIGHT[here] <= HEIGHT[there]:
                found.append(f"{module} imports {other}")
    return found


@pytest.fixture(scope="module")
def trees():
    return sources(ROOT)


def test_imports_point_down(trees):
    assert offences(trees) == []
    assert set(HEIGHT) == {unit_of(module) for module in trees}  # the list names nothing else


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("training.loop", "from bagpiper_jax.inference import engine", "imports inference.engine"),
        ("inference.engine", "import bagpiper_jax.training.step", "imports training.step"),
        ("vocab", "def f():\n  from bagpiper_jax import modeling", "imports modeling"),
        ("evaluation.asr", "from bagpiper_jax.evaluation import report", "imports evaluation."),
        ("novelty", "", "stands nowhere"),
    ],
)
def test_an_import_upwards_is_found(trees, module, line, offence):
    found = offences(trees | {module: ast.parse(line)})
    assert len(found) == 1 and found[0].startswith(f"{module} {offence}")


def test_no_module_imports_itself_by_way_of_others(trees):
    graphlib.TopologicalSorter(inner(trees)).prepare()


def test_packages_are_imported_where_the_page_says(trees):
    apart = {"grain", "orbax", "tensorstore", "torch", "transformers", "tensorflow"}
    apart |= {"experiments", "data", "benchmarks"}
    found = {
        (package, unit_of(module), top)
        for module, tree in trees.items()
        for name, top in imported(tree)
        if (package := name.partition(".")[0]) in apart
    }
    assert found == {
        ("grain", "input_pipeline", True),
        ("orbax", "store", True),
        ("tensorstore", "store", True),
        ("torch", "porting", False),
        ("transformers", "porting", False),
    }


def test_files_that_the_page_names_are_there():
    paths = re.findall(
        r"`((?:bagpiper_jax|data|docs|experiments|requirements|tests)/[^ `]*)`", PAGE
    )
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing <= {"docs/build/index.html"} and len(paths) > 20
