"""Writes the API reference, HTML from the docstrings, with pdoc: `make docs`.

    python docs/api.py [--out docs/build]

Every module must import and every page must come without a warning. Nothing is fetched: the pages
carry their style, search and pictures.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import bagpiper_jax

HERE = Path(__file__).resolve().parent
# module → why it has no page
LEFT_OUT = {"bagpiper_jax.serving.page": "needs Gradio (extra `page`), which is in no lock"}

# classes whose fields no source shows
MADE = ("bagpiper_jax.simulation.schema.Verdict",)  # pydantic makes it from the dimensions


def module_names() -> list[str]:
    """All modules of the library but those of LEFT_OUT.

    Raises:
      SystemExit: one does not import.
    """

    def fail(name: str) -> None:
        error = sys.exc_info()[1]
        sys.exit(f"{name} does not import: {error}. `make docs` installs what the pages need")

    names = [bagpiper_jax.__name__]
    for module in pkgutil.walk_packages(bagpiper_jax.__path__, "bagpiper_jax.", fail):
        if module.name in LEFT_OUT:
            continue
        try:
            importlib.import_module(module.name)
        except Exception:
            fail(module.name)
        names.append(module.name)
    return names


def complete(names: list[str]) -> None:
    """Fills in what pdoc does not find by itself.

    It reads a module's dictionary, where the names that `bagpiper_jax` resolves late are missing;
    shows only the submodules that `__all__` lists; and seeks the annotations of a `NamedTuple` in
    the module that Python pretends its constructor is from.
    """
    for name in bagpiper_jax.__all__:
        setattr(bagpiper_jax, name, getattr(bagpiper_jax, name))
    parents = [name.rpartition(".") for name in names]
    closed = {name.rpartition(".")[0] for name in LEFT_OUT}
    for name in names:
        module = sys.modules[name]
        if name in closed or hasattr(module, "__all__"):
            shown = getattr(module, "__all__", [])
            below = {child for parent, _, child in parents if parent == name}
            module.__all__ = [*shown, *sorted(below - set(shown))]
        for value in list(vars(module).values()):
            if isinstance(value, type) and hasattr(value, "_fields"):
                value.__new__.__module__ = value.__module__


def write(out: Path) -> list[str]:
    """Writes the pages to `out`; returns the modules' names.

    Raises:
      UserWarning: what pdoc warned of: a name that does not resolve, a source that it cannot read.
      SystemExit: pdoc is missing, or a module does not import.
    """
    try:
        import pdoc
    except ImportError:
        sys.exit("pdoc is missing: `make docs`, or pip install 'bagpiper_jax[docs]'")
    names = module_names()
    complete(names)
    pdoc.render.configure(
        docformat="google", footer_text=f"bagpiper_jax {bagpiper_jax.__version__}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in MADE:
            warnings.filterwarnings("ignore", f"Cannot determine where {name}", UserWarning)
        pdoc.pdoc("bagpiper_jax", output_directory=out)
    for page in [*out.rglob("*.html"), *out.glob("*.js")]:  # defaults that are paths of files here
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(f"{HERE.parent}/", ""), encoding="utf-8")
    return names


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder of the pages")
    out = parser.parse_args().out
    names = write(out)
    for name, reason in LEFT_OUT.items():
        print(f"no page for {name}: {reason}")
    print(f"{len(names)} modules: open {out / 'index.html'}")


if __name__ == "__main__":
    main()
