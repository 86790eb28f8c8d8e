"""TFDS builder of the mini corpus, which lies in `data/mini` and needs no download.

    python data/build_tfds.py mini_corpus --to DIR

`data/build_mini.py` rebuilds the corpus itself.
"""

from __future__ import annotations

import csv
from pathlib import Path

import tensorflow_datasets as tfds
from recordings_builder import Clip, RecordingsBuilder, recordings

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.scenes.corpus import voice_kind

FOLDER = Path(__file__).parent / "mini"
KINDS = {"music": "music", "sound": "sound"}  # the others are speech
NOTES = ("kind", "label", "text", "voice", "source", "title", "author")


class MiniCorpus(RecordingsBuilder):
    """Recordings of a few seconds, each with a plain caption that is true of it."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A copy is a folder with clips.tsv and audio/, as data/mini."
    DESCRIPTION = "18 minutes of speech, sound and music from Debian packages and synthetic voices."
    HOMEPAGE = "https://arxiv.org/abs/2602.05220"
    LICENCE = "each clip has its own: CC0, CC-BY, CC-BY-SA, Apache-2.0 or MIT-Festival"
    CITATION = "data/mini/LICENSES.md names every source and author."

    def _clips(self, dl_manager):
        folder = self._local_copy(dl_manager) or FOLDER
        table = folder / "clips.tsv"
        if not table.is_file():
            raise UserError(f"there is no {table}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        found = {path.stem: path for path in recordings(folder / "audio").values()}
        splits: dict[str, list[Clip]] = {}
        with open(table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                splits.setdefault(row["split"], []).append(_clip(row, found))
        return splits


def _clip(row: dict[str, str], found: dict[str, Path]) -> Clip:
    return Clip(
        id=row["id"],
        path=found.get(row["id"]),
        captions=(_caption(row),),
        domain=KINDS.get(row["kind"], "speech"),
        language="en",
        licence=row["licence"],
        notes={key: row[key] for key in NOTES} | {"synthetic": row["synthetic"] == "1"},
    )


def _caption(row: dict[str, str]) -> str:
    if row["kind"] == "music":
        return f"Music: {row['label']}."
    if row["kind"] == "sound":
        return f"The sound of {row['label']}."
    says = "says the letter" if row["kind"] == "letter" else "says"
    voice = voice_kind(row["voice"], row["synthetic"] == "1")
    return f'{voice.capitalize()} {says} "{row["text"]}".'
