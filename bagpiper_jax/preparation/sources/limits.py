"""What a source reads at most into memory at once, and which files it knows."""

from __future__ import annotations

MAX_AUDIO_BYTES = 512 << 20  # a member of a tar, a cell of a table
MAX_TEXT_BYTES = 16 << 20  # a line of a manifest, a text file
PART_BYTES = 256 << 10  # of a manifest: a thousand bare lines, a hundred long captions
PART_FILES = 250  # of a folder: few enough that a small one keeps all cores busy
PART_EXAMPLES = 250  # of a TFDS data set

# libsndfile reads the first row; the others are taken in, so that decoding says why they fail
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .caf .w64 .rf64 "
    ".m4a .mp4 .aac .webm .wma .amr .ac3 .mka".split()
)
TEXT_SUFFIXES = frozenset([".txt", ".json"])
