"""LibriSpeech: `SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` and FLAC files beside it.

Source: openslr.org/12 (CC BY 4.0); test-clean has 2,620 utterances, up to 35 s.
"""

from __future__ import annotations

import glob
import os

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks.item import Item, check_audio

MEND = "unpack test-clean.tar.gz of openslr.org/12 again"


def read_librispeech(path: str, subset: str = "test-clean") -> list[Item]:
    """The utterances; `answer` is the transcript as released, in capitals.

    Args:
      path: the folder of the subset, or one that holds it, `LibriSpeech` between them or not.
      subset: its name.

    Raises:
      UserError: no transcripts, or a line or a recording is missing or damaged.
    """
    places = [os.path.join(path, "LibriSpeech", subset), os.path.join(path, subset), path]
    folder = next((p for p in places if os.path.isdir(p)), path)
    files = sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*", "*.trans.txt")))
    if not files:
        raise UserError(f"{folder} has no SPEAKER/CHAPTER/*.trans.txt: {MEND}")
    return [item for file in files for item in _chapter(file)]


def _chapter(file: str) -> list[Item]:
    items = []
    try:
        with open(file, encoding="utf-8") as lines:
            rows = lines.read().splitlines()
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read ({e}): {MEND}") from e
    for number, row in enumerate(rows, 1):
        where = f"{file}, line {number}"
        key, _, words = row.partition(" ")
        if not words.strip() or key.count("-") != 2:
            raise UserError(f"{where}: it is no `UTTERANCE WORDS`: {MEND}")
        audio = os.path.join(os.path.dirname(file), f"{key}.flac")
        check_audio(audio, where, MEND)
        items.append(Item(key, audio, "", (), words.strip(), "", {"speaker": key.split("-")[0]}))
    return items
