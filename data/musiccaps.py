"""TFDS builder of MusicCaps (Agostinelli et al., 2023; huggingface.co/datasets/google/MusicCaps).

    python data/build_tfds.py musiccaps --to DIR --from COPY

The captions are downloaded where the copy lacks them. The recordings come from YouTube and are not
distributed with them, so that a local copy is always needed; some clips are no longer to be had.
"""

from __future__ import annotations

import ast
from pathlib import Path

import tensorflow_datasets as tfds
from recordings_builder import Clip, RecordingsBuilder, find_file, read_table, recordings

from bagpiper_jax.errors import UserError

TABLE = "musiccaps-public.csv"
URL = f"https://huggingface.co/datasets/google/MusicCaps/resolve/main/{TABLE}"
COLUMNS = ("ytid", "start_s", "end_s", "aspect_list", "caption", "is_audioset_eval")


class MusicCaps(RecordingsBuilder):
    """Ten seconds of music with a caption by a musician; split as AudioSet splits them."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A copy is a folder with the recordings, cut to their ten seconds and named by ytid, "
        "ytid_start, ytid_start_end or [ytid]-[start-end], in any subfolders, and, where there is "
        f"no network, {TABLE}."
    )
    DESCRIPTION = "5,521 music clips of AudioSet, each with a caption and a list of aspects."
    HOMEPAGE = "https://huggingface.co/datasets/google/MusicCaps"
    LICENCE = "CC-BY-SA-4.0 (captions); the recordings are under YouTube's terms"
    CITATION = "A. Agostinelli et al.: MusicLM: Generating Music From Text. arXiv 2301.11325."

    def _clips(self, dl_manager):
        local = self._local_copy(dl_manager)
        if local is None:
            raise UserError(f"{self.name} needs a copy. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        table = find_file(local, TABLE) or self._download(dl_manager, {"table": URL})["table"]
        found = {path.stem: path for path in recordings(local).values()}
        splits: dict[str, list[Clip]] = {"train": [], "eval": []}
        for row in read_table(table, COLUMNS):
            split = "eval" if row["is_audioset_eval"].strip().lower() == "true" else "train"
            splits[split].append(_clip(row, found))
        return splits


def _clip(row: dict[str, str], found: dict[str, Path]) -> Clip:
    ytid, start, end = row["ytid"], row["start_s"], row["end_s"]
    names = (f"[{ytid}]-[{start}-{end}]", f"{ytid}_{start}_{end}", f"{ytid}_{start}", ytid)
    notes = {"ytid": ytid, "start_s": start, "end_s": end}
    try:
        aspects = ast.literal_eval(row["aspect_list"])  # a Python list, as it was published
    except (ValueError, SyntaxError):
        aspects = []
    if isinstance(aspects, list) and aspects:
        notes["aspects"] = ", ".join(map(str, aspects))
    path = next((found[name] for name in names if name in found), None)
    captions = (row["caption"].strip(),)
    return Clip(f"{ytid}_{start}", path, captions, "music", "en", "LicenseRef-YouTube", notes)
