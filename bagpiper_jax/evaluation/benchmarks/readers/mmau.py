"""MMAU test-mini: `mmau-test-mini.json` and the recordings that it names.

Source: github.com/Sakshi113/MMAU (Apache-2.0), release v05.15.25: 1,000 questions.
"""

from __future__ import annotations

import os

from bagpiper_jax.evaluation.benchmarks.item import Item, check_audio
from bagpiper_jax.evaluation.benchmarks.readers.json_table import read_entries

FILE = "mmau-test-mini.json"
MEND = f"fetch {FILE} and test-mini-audios again from MMAU's release, side by side"


def read_mmau(path: str) -> list[Item]:
    """The questions; `category` is the task (sound, music, speech).

    Args:
      path: the JSON file, or the folder of `mmau-test-mini.json`. Recordings are relative to it.

    Raises:
      UserError: the file, an entry or a recording is missing or damaged.
    """
    file = os.path.join(path, FILE) if os.path.isdir(path) else path
    folder = os.path.dirname(os.path.abspath(file))
    items: list[Item] = []
    seen: set[str] = set()
    for entry in read_entries(file, MEND):
        key = entry.text("id")
        if key in seen:
            raise entry.damaged(f"the id {key} occurs twice")
        seen.add(key)
        choices = entry.texts("choices")
        if entry.get("answer") is None:
            raise entry.damaged("it has no answer: those of the full test set are withheld")
        answer = entry.text("answer")
        if answer not in choices:
            raise entry.damaged(f"the answer {answer!r} is none of the choices")
        audio = os.path.normpath(os.path.join(folder, entry.text("audio_id")))
        check_audio(audio, entry.where, MEND)
        extra = {n: entry.get(n) for n in ("difficulty", "category", "sub-category", "dataset")}
        items.append(
            Item(key, audio, entry.text("question"), choices, answer, entry.text("task"), extra)
        )
    return items
