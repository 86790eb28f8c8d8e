"""Builds a TFDS data set of this folder.

    python data/build_tfds.py NAME --to DIR [--from COPY] [--config CONFIG]

NAME is librispeech, audiocaps, clotho, musiccaps or mini_corpus. Without a copy it is downloaded,
where that is possible. The result, whose folder and splits are printed, is a source of
`bagpiper data prepare` (`tfds:FOLDER`, or {"path": FOLDER, "split": SPLIT} for another split than
train), and is read by `tfds.data_source`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

try:
    import tensorflow_datasets as tfds
except ImportError as err:
    sys.exit(f"build_tfds: {err}; pip install 'bagpiper_jax[data]'")

from bagpiper_jax.errors import UserError

BUILDERS = {
    "librispeech": "LibriSpeech",
    "audiocaps": "AudioCaps",
    "clotho": "Clotho",
    "musiccaps": "MusicCaps",
    "mini_corpus": "MiniCorpus",
}


def build(name: str, to: str, copy: str = "", config: str = "") -> tfds.core.DatasetBuilder:
    """Builds a data set, unless it is there already.

    Args:
      name: of `BUILDERS`.
      to: TFDS's folder of data sets.
      copy: a local copy of the published files.
      config: of the builder; empty: its first.

    Raises:
      UserError: the files are not to be had, or are not as published.
    """
    if copy and not os.path.isdir(copy):
        raise UserError(f"there is no folder {copy}: give the one of the local copy")
    made = getattr(importlib.import_module(name), BUILDERS[name])
    settings = {"config": config} if config else {}
    try:
        builder = made(data_dir=to, file_format="array_record", **settings)
    except ValueError as e:
        raise UserError(f"{name}: {' '.join(str(e).split())[:300]}") from e
    download = tfds.download.DownloadConfig(manual_dir=copy or None)
    builder.download_and_prepare(download_config=download)
    return builder


def main(args: list[str] | None = None) -> None:
    """Builds what the command line says, and tells what it has become."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=BUILDERS)
    parser.add_argument("--to", required=True, help="TFDS's folder of data sets")
    parser.add_argument("--from", dest="copy", default="", help="a copy of the published files")
    parser.add_argument("--config", default="", help="such as dev_clean of librispeech")
    given = parser.parse_args(args)
    try:
        builder = build(given.name, given.to, given.copy, given.config)
    except UserError as e:
        sys.exit(f"build_tfds: {e}")
    without = (builder.info.metadata or {}).get("without_recording", {})
    for split in sorted({*builder.info.splits, *without}):
        there = builder.info.splits[split].num_examples if split in builder.info.splits else 0
        print(f"{split}: {there} clips, {without.get(split, 0)} without recording left out")
    print(builder.data_dir)


if __name__ == "__main__":
    main()
