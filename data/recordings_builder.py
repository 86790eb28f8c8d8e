"""What the TFDS builders of this folder share: captioned recordings, written as ArrayRecord.

Nothing here imports TensorFlow: examples are sorted before their audio is read and written shard by
shard (`tfds.core.ShardBasedBuilder`, TFDS 4.9.10), archives are unpacked by the standard library,
and audio is kept as the bytes of its file. `bagpiper_jax.preparation.sources` reads what is built
(`tfds:FOLDER`), as does `tfds.data_source`.
"""

from __future__ import annotations

import abc
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_directory
from bagpiper_jax.preparation.sources.limits import AUDIO_SUFFIXES

SHARD_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True)
class Clip:
    """An example before its audio is read.

    Attributes:
      id: unique in its split.
      path: of its recording; None where the local copy lacks it.
      captions: its texts.
      domain, language, licence: as in `bagpiper_jax.preparation.item.Item`.
      notes: what else is known of it, of plain values.
    """

    id: str
    path: Path | None
    captions: tuple[str, ...]
    domain: str
    language: str
    licence: str
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class RecordingsBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes each split's clips, in an order that their ids alone decide.

    Subclasses give `DESCRIPTION`, `HOMEPAGE`, `CITATION`, `LICENCE`, `VERSION`,
    `MANUAL_DOWNLOAD_INSTRUCTIONS` and `_clips`. Clips without a recording are left out; their
    number is in the metadata of the data set, by split.
    """

    DESCRIPTION = HOMEPAGE = CITATION = LICENCE = ""

    @abc.abstractmethod
    def _clips(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Clip]]:
        """The clips of each split, from the local copy or from the network.

        Raises:
          UserError: neither is to be had.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "id": text,
            "audio": tfds.features.Tensor(shape=(), dtype=np.str_, doc="bytes of an audio file"),
            "captions": tfds.features.Sequence(text),
            "domain": text,
            "language": text,
            "licence": text,
            "notes": tfds.features.Text(doc="JSON of what else is known"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=self.LICENCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager):
        splits, missing = {}, {}
        for split, clips in self._clips(dl_manager).items():
            there = sorted((c for c in clips if c.path is not None), key=_order)
            ids = {clip.id for clip in there}
            if len(ids) < len(there):
                raise UserError(f"{self.name}: {split} has {len(there) - len(ids)} ids twice")
            missing[split] = len(clips) - len(there)
            if there:
                shards = _shards(there)
                splits[split] = [functools.partial(_examples, shard) for shard in shards]
        if not splits:
            total = sum(missing.values())
            reason = f"none of the {total} clips has its recording in the local copy"
            raise UserError(f"{self.name}: {reason}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        self.info.metadata["without_recording"] = missing
        return splits

    def _local_copy(self, dl_manager: tfds.download.DownloadManager) -> Path | None:
        """The folder of a local copy (`manual_dir`), where one is given and not empty."""
        try:
            return Path(os.fspath(dl_manager.manual_dir))
        except AssertionError:  # as TFDS says that there is none
            return None

    def _download(self, dl_manager: tfds.download.DownloadManager, urls: dict[str, str]):
        """Paths of downloaded files, by the keys of `urls`.

        Raises:
          UserError: there is no network, or it gives other files than it should.
        """
        try:
            return {k: Path(os.fspath(p)) for k, p in dl_manager.download(urls).items()}
        except (OSError, tfds.download.DownloadError) as e:
            reason = " ".join(str(e).split())[:200]
            where = f"cannot be downloaded ({reason}): give a local copy"
            raise UserError(f"{self.name} {where}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}") from e


def _order(clip: Clip) -> tuple[bytes, str]:
    """A fixed order that mixes speakers and sources."""
    return hashlib.sha256(clip.id.encode()).digest(), clip.id


def _shards(clips: list[Clip]) -> list[list[Clip]]:
    shards, size = [[]], 0
    for clip in clips:
        num_bytes = os.path.getsize(clip.path)
        if shards[-1] and size + num_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(clip)
        size += num_bytes
    return shards


def _examples(clips: list[Clip]) -> Iterator[tuple[str, dict[str, Any]]]:
    for clip in clips:
        yield (
            clip.id,
            {
                "id": clip.id,
                "audio": clip.path.read_bytes(),
                "captions": list(clip.captions),
                "domain": clip.domain,
                "language": clip.language,
                "licence": clip.licence,
                "notes": json.dumps(clip.notes, ensure_ascii=False),
            },
        )


def recordings(folder: Path) -> dict[str, Path]:
    """The recordings under a folder, by file name; links that lead out of it are left out, and so
    is what is no regular file."""
    root = os.path.realpath(folder)
    found = {}
    for where, subfolders, names in os.walk(folder):
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(where, name)
            inside = os.path.commonpath([os.path.realpath(path), root]) == root
            known = os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES
            if known and inside and os.path.isfile(path):  # a pipe would be waited for
                found.setdefault(name, Path(path))
    return found


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a name under a folder, the one nearest to it; None where there is none."""
    found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), path))
    return next((path for path in found if path.is_file()), None)


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
      UserError: it lacks one of the columns, or is no text.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:  # Clotho's metadata are in Windows' encoding
        text = data.decode("cp1252", "replace")
    try:
        table = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(table)
    except csv.Error as e:
        raise UserError(f"{path} is no CSV table: {e}") from e
    missing = [name for name in columns if name not in (table.fieldnames or ())]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: take the published file")
    short = [number for number, row in enumerate(rows, 2) if None in (row[c] for c in columns)]
    if short:
        raise UserError(f"{path}: row {short[0]} has too few columns: take the published file")
    return rows


def unpack_tar(archive: Path) -> Path:
    """Unpacks a tar beside itself, once; members that lead out of the folder are refused.

    Raises:
      UserError: it is damaged, or unsafe.
    """

    def unpack(folder: str) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")

    return _unpacked(archive, unpack, (tarfile.TarError, EOFError, OSError))


def unpack_7z(archive: Path) -> Path:
    """Unpacks a 7-Zip archive beside itself, once.

    Raises:
      UserError: it is damaged, or py7zr is missing.
    """
    try:
        import py7zr
    except ImportError as e:
        raise UserError("unpacking 7-Zip needs py7zr: pip install 'bagpiper_jax[data]'") from e

    def unpack(folder: str) -> None:
        with py7zr.SevenZipFile(archive) as packed:
            packed.extractall(folder)

    return _unpacked(archive, unpack, (py7zr.exceptions.ArchiveError, EOFError, OSError))


def _unpacked(archive: Path, unpack, damaged: tuple[type[Exception], ...]) -> Path:
    folder = archive.with_name(archive.name + ".unpacked")
    if not folder.is_dir():
        try:
            write_directory(folder, unpack)
        except damaged as e:
            raise UserError(f"{archive} cannot be unpacked: {e}") from e
    return folder
