"""TFDS builder of AudioCaps (Kim et al., 2019; github.com/cdjkim/audiocaps).

    python data/build_tfds.py audiocaps --to DIR --from COPY

The captions are downloaded where the copy lacks them. The recordings come from YouTube and are not
distributed with them, so that a local copy is always needed; some clips are no longer to be had.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds
from recordings_builder import Clip, RecordingsBuilder, find_file, read_table, recordings

from bagpiper_jax.errors import UserError

URL = "https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset/{}.csv"
SPLITS = ("train", "val", "test")
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
SECONDS = 10


class AudioCaps(RecordingsBuilder):
    """Ten seconds of everyday sound with one caption (train) or five (val, test)."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A copy is a folder with the recordings, cut to their ten seconds and named by youtube_id, "
        "Yyoutube_id, youtube_id_start or audiocap_id, in any subfolders, and, where there is no "
        "network, train.csv, val.csv and test.csv."
    )
    DESCRIPTION = "About 50,000 clips of AudioSet with captions that people wrote."
    HOMEPAGE = "https://audiocaps.github.io"
    LICENCE = "MIT (captions); the recordings are under YouTube's terms"
    CITATION = (
        "C. D. Kim, B. Kim, H. Lee, G. Kim: AudioCaps: Generating Captions for Audios in The Wild. "
        "NAACL-HLT 2019."
    )

    def _clips(self, dl_manager):
        local = self._local_copy(dl_manager)
        if local is None:
            raise UserError(f"{self.name} needs a copy. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        tables = {split: find_file(local, f"{split}.csv") for split in SPLITS}
        if not any(tables.values()):
            tables = self._download(dl_manager, {split: URL.format(split) for split in SPLITS})
        found = {path.stem: path for path in recordings(local).values()}
        return {split: _split(table, found) for split, table in tables.items() if table}


def _split(table: Path, found: dict[str, Path]) -> list[Clip]:
    rows: dict[tuple[str, int], list[dict[str, str]]] = {}
    for number, row in enumerate(read_table(table, COLUMNS), 2):
        try:
            start = int(float(row["start_time"]))
        except ValueError as e:
            raise UserError(f"{table}: row {number} has start_time {row['start_time']!r}") from e
        rows.setdefault((row["youtube_id"], start), []).append(row)
    clips = []
    for (youtube, start), group in rows.items():
        path = next((found[n] for n in _names(youtube, start, group) if n in found), None)
        notes = {"youtube_id": youtube, "start_time": start}
        captions = tuple(row["caption"].strip() for row in group)
        licence = "LicenseRef-YouTube"
        clips.append(Clip(f"{youtube}_{start}", path, captions, "sound", "en", licence, notes))
    return clips


def _names(youtube: str, start: int, rows: list[dict[str, str]]) -> list[str]:
    """How the clip's file is called, by the tools that fetch it."""
    stop = start + SECONDS
    spans = [f"_{start}", f"_{start}_{stop}", f"_{start}.000_{stop}.000"]
    stems = [prefix + youtube + span for span in spans for prefix in ("", "Y")]
    return stems + [youtube, "Y" + youtube] + [row["audiocap_id"] for row in rows]
