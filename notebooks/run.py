"""Runs the notebooks, each from a clean kernel, and keeps what they print and draw.

    python notebooks/run.py [notebooks/2_weights.ipynb …]

Kept are text and pictures; sound is not, it is heard when a notebook is opened and run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
MINUTES = 20  # that a cell may take
KEPT = ("image/png", "text/plain")


def run(path: Path, env: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in an empty directory.

    Args:
      path: of the notebook; the file stays as it is.
      env: of the kernel; that of this process if None.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; tells which, and how.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=60 * MINUTES,
            kernel_name="python3",  # ipykernel's own, of this Python
            resources={"metadata": {"path": folder}},
        )
        return client.execute(env=dict(os.environ if env is None else env))


def trimmed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress bars, sound, counters and times."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            if "data" in output:
                output.metadata = {}
                output.data = {kind: output.data[kind] for kind in KEPT if kind in output.data}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", type=Path, nargs="*", help="all, if none is named")
    for path in parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb")):
        began = time.monotonic()
        nbformat.write(trimmed(run(path)), path)
        size = path.stat().st_size / 1000
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
