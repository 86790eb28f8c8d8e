"""TFDS builder of Clotho 2.1 (Drossos et al., 2020; zenodo.org/records/4783391).

python data/build_tfds.py clotho --to DIR [--from COPY]
"""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds
from recordings_builder import (
    Clip,
    RecordingsBuilder,
    find_file,
    read_table,
    recordings,
    unpack_7z,
)

from bagpiper_jax.errors import UserError

URL = "https://zenodo.org/records/4783391/files/"
SPLITS = ("development", "validation", "evaluation")
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
# how the metadata name them → SPDX; Freesound's "sampling+" has no SPDX id
LICENCES = {
    "publicdomain/zero/1.0": "CC0-1.0",
    "licenses/by/3.0": "CC-BY-3.0",
    "licenses/by/4.0": "CC-BY-4.0",
    "licenses/by-nc/3.0": "CC-BY-NC-3.0",
    "licenses/by-nc/4.0": "CC-BY-NC-4.0",
}


class Clotho(RecordingsBuilder):
    """15 to 30 seconds of sound from Freesound with five captions each."""

    VERSION = tfds.core.Version("2.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A copy is a folder with clotho_captions_SPLIT.csv, clotho_metadata_SPLIT.csv and the "
        "unpacked recordings in folders named SPLIT (development, validation, evaluation)."
    )
    DESCRIPTION = "5,929 clips of Freesound with five captions each: development, validation, test."
    HOMEPAGE = "https://zenodo.org/records/4783391"
    LICENCE = "Tampere University's licence (captions); each recording has its own"
    CITATION = (
        "K. Drossos, S. Lipping, T. Virtanen: Clotho: an Audio Captioning Dataset. ICASSP 2020."
    )

    def _clips(self, dl_manager):
        local = self._local_copy(dl_manager)
        if local is not None:
            tables = {s: find_file(local, f"clotho_captions_{s}.csv") for s in SPLITS}
            copies = {s: (table, local) for s, table in tables.items() if table}
            if not copies:
                raise UserError(f"{self.name}: {local}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
            notes = {s: find_file(local, f"clotho_metadata_{s}.csv") for s in copies}
        else:
            names = {f"{kind}_{s}": kind for kind in ("captions", "metadata") for s in SPLITS}
            urls = {key: f"{URL}clotho_{key}.csv" for key in names}
            urls |= {f"audio_{s}": f"{URL}clotho_audio_{s}.7z" for s in SPLITS}
            paths = self._download(dl_manager, urls)
            audio = {s: unpack_7z(paths[f"audio_{s}"]) for s in SPLITS}
            copies = {s: (paths[f"captions_{s}"], audio[s]) for s in SPLITS}
            notes = {s: paths[f"metadata_{s}"] for s in SPLITS}
        return {s: _split(s, *copy, notes[s]) for s, copy in copies.items()}


def _split(split: str, table: Path, folder: Path, notes: Path | None) -> list[Clip]:
    found = _recordings(folder, split)
    known = {}
    if notes is not None:
        rows = read_table(notes, ("file_name", "sound_id", "sound_link", "license"))
        known = {row["file_name"].strip(): row for row in rows}
    clips = []
    for row in read_table(table, ("file_name", *CAPTIONS)):
        name = row["file_name"].strip()
        more = known.get(name, {})
        captions = tuple(row[column].strip() for column in CAPTIONS)
        kept = {key: more[key] for key in ("sound_id", "sound_link", "manufacturer") if key in more}
        licence = _licence(more.get("license", ""))
        stem = name.removesuffix(".wav")
        clips.append(Clip(stem, found.get(name), captions, "sound", "en", licence, kept))
    return clips


def _recordings(folder: Path, split: str) -> dict[str, Path]:
    """The recordings of a split: names may recur in others, so that its own folder goes first."""
    named = [path for name in (split, f"clotho_audio_{split}") for path in folder.rglob(name)]
    own = next((path for path in sorted(named) if path.is_dir()), folder)
    return {name.strip(): path for name, path in recordings(own).items()}


def _licence(text: str) -> str:
    """SPDX id of a Creative Commons address, else the text as it stands."""
    return next((spdx for part, spdx in LICENCES.items() if part in text), text.strip())
