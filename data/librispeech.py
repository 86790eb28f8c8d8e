"""TFDS builder of LibriSpeech (Panayotov et al., 2015; openslr.org/12).

    python data/build_tfds.py librispeech --to DIR [--from COPY] [--config dev_clean]

A local copy is the folder that holds `LibriSpeech/`, or the archives as they are downloaded.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds
from recordings_builder import Clip, RecordingsBuilder, recordings, unpack_tar

from bagpiper_jax.errors import UserError

URL = "http://www.openslr.org/resources/12/{}.tar.gz"
SUBSETS = (
    "dev-clean dev-other test-clean test-other train-clean-100 train-clean-360 train-other-500"
).split()


class LibriSpeech(RecordingsBuilder):
    """Read English of audio books: FLAC at 16 kHz, upper-case transcripts as captions."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="all", description="every subset, or those of a local copy"),
        *(tfds.core.BuilderConfig(name=s.replace("-", "_"), description=s) for s in SUBSETS),
    ]
    MAX_SIMULTANEOUS_DOWNLOADS = 5  # what openslr.org asks for
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A copy is the folder that holds LibriSpeech/, or archives such as dev-clean.tar.gz."
    )
    DESCRIPTION = "About 1,000 hours of read English speech from LibriVox."
    HOMEPAGE = "https://www.openslr.org/12"
    LICENCE = "CC-BY-4.0"
    CITATION = (
        "V. Panayotov, G. Chen, D. Povey, S. Khudanpur: LibriSpeech: an ASR corpus based on public "
        "domain audio books. ICASSP 2015."
    )

    def _clips(self, dl_manager):
        config = self.builder_config.name
        subsets = [s for s in SUBSETS if config in ("all", s.replace("-", "_"))]
        local = self._local_copy(dl_manager)
        if local is not None and (local / "LibriSpeech").is_dir():
            roots = {s: local for s in subsets if (local / "LibriSpeech" / s).is_dir()}
        else:
            if local is not None:  # archives: those that are there, checked by their sums
                subsets = [s for s in subsets if (local / f"{s}.tar.gz").is_file()] or subsets
            archives = self._download(dl_manager, {s: URL.format(s) for s in subsets})
            roots = {s: unpack_tar(archive) for s, archive in archives.items()}
        if not roots:
            raise UserError(f"{self.name}: {local} has none of {', '.join(subsets)}")
        return {s.replace("-", "_"): _subset(root, s) for s, root in roots.items()}


def _subset(root: Path, subset: str) -> list[Clip]:
    folder = root / "LibriSpeech" / subset
    speakers, flacs = _speakers(root / "LibriSpeech" / "SPEAKERS.TXT"), recordings(folder)
    clips = []
    for table in sorted(folder.glob("*/*/*.trans.txt")):
        for line in table.read_text(encoding="utf-8").splitlines():
            key, _, transcript = line.partition(" ")
            speaker, _, rest = key.partition("-")
            if not rest or not transcript.strip():
                raise UserError(f"{table}: {line[:40]!r} is no key and transcript")
            notes = {"speaker": speaker, "chapter": rest.partition("-")[0]}
            if speaker in speakers:
                notes["gender"] = speakers[speaker]
            path = flacs.get(f"{key}.flac")
            clips.append(Clip(key, path, (transcript.strip(),), "speech", "en", "CC-BY-4.0", notes))
    return clips


def _speakers(path: Path) -> dict[str, str]:
    """Speaker → F or M, from the table of the corpus where there is one."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line[:1] != ";"]
    return {row[0]: row[1] for row in rows if len(row) > 1}
