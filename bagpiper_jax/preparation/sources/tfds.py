"""TFDS data sets by name, read without TensorFlow where they are kept as ArrayRecord."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.sources.entries import (
    BadEntry,
    Defaults,
    embedded_audio,
    make_item,
    stamp,
    unique,
)
from bagpiper_jax.preparation.sources.limits import MAX_AUDIO_BYTES, PART_EXAMPLES


@dataclasses.dataclass(frozen=True)
class TfdsSet:
    """A split of a data set that TFDS has prepared, such as one that the builders in `data/` made.

    An example's audio is a file's bytes, or a waveform of integers (`tfds.features.Audio`). Each
    text of `captions`, where there are several, is an item. Other fields are those of
    `entries.ALIASES`; ids default to the number within the split.

    Attributes:
      name: of the source.
      dataset: its name, with config and version as TFDS writes them, or the folder of a version.
      split: such as "train" or "train[:10%]".
      data_dir: where TFDS keeps its data sets; empty: its default.
      sample_rate: of waveforms whose feature does not state it.
      defaults: what holds for every example.
    """

    name: str
    dataset: str
    split: str = "train"
    data_dir: str = ""
    sample_rate: int = 0
    defaults: Defaults = Defaults()

    def parts(self) -> list[str]:
        """`SPLIT#NUMBER`, `PART_EXAMPLES` examples from there each."""
        starts = range(0, len(self._open()), PART_EXAMPLES)
        return [f"{self.split}#{start}" for start in starts]

    def stamp(self) -> str:
        """Of the number of examples; a version of a data set does not change otherwise."""
        return stamp([(self.split, len(self._open()))])

    def read(self, part: str) -> Iterator[Item | Damaged]:
        """The examples of a part, in the order of the split."""
        return unique(self._examples(int(part.rsplit("#", 1)[1])))

    def _examples(self, start: int) -> Iterator[Item | Damaged]:
        examples = self._open()
        for number in range(start, min(start + PART_EXAMPLES, len(examples))):
            example_id = f"{self.split}#{number}"
            try:
                fields = {name: _plain(value) for name, value in examples[number].items()}
            except Exception as e:  # array_record and protobuf raise many kinds
                reason = f"the example cannot be read: {' '.join(str(e).split())}"
                yield Damaged(example_id, reason)
                continue
            yield from self._items(example_id, number, fields)

    def _items(self, example_id: str, number: int, fields: dict) -> Iterator[Item | Damaged]:
        provenance = {"source": self.name, "dataset": self.dataset, "example": number}
        name = next((n for n in (*self.defaults.names("audio"), "speech") if n in fields), "")
        try:
            recording = self._recording(name, fields.pop(name, None))
        except BadEntry as e:
            yield Damaged(str(fields.get("id") or example_id), str(e))
            return
        given = fields.pop("captions", None)
        texts = given if isinstance(given, list) and given else [None]
        for turn, text in enumerate(texts):
            own = dict(fields) if text is None else {**fields, "caption": text}
            entry_id = str(self.defaults.get(fields, "id") or example_id)
            if len(texts) > 1:
                entry_id = f"{entry_id}.{turn}"
                own = {k: v for k, v in own.items() if k not in self.defaults.names("id")}
            yield make_item(own, entry_id, _no_path, self.defaults, provenance, recording)

    def _recording(self, name: str, value: Any) -> tuple[Audio, ...]:
        if value is None:
            return ()
        if isinstance(value, str):  # bytes that happened to be UTF-8
            value = value.encode("utf-8")
        if isinstance(value, bytes):
            if len(value) > MAX_AUDIO_BYTES:
                raise BadEntry(f"the recording has {len(value)} bytes: it is too large")
            return (embedded_audio(value),)
        feature = self._open().dataset_info.features[name]
        rate = int(getattr(feature, "sample_rate", None) or self.sample_rate)
        return (embedded_audio(_as_wav(np.asarray(value), rate)),)

    def _open(self):
        return _data_source(self.dataset, self.split, self.data_dir)


@functools.lru_cache(maxsize=4)
def _data_source(dataset: str, split: str, data_dir: str):
    """The data set's examples, by number.

    Raises:
      UserError: it is not there, has no such split, or needs a package that is missing.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as e:
        reason = "needs tensorflow-datasets: pip install 'bagpiper_jax[data]'"
        raise UserError(f"TFDS data set {dataset} {reason}") from e
    try:
        if os.path.isfile(os.path.join(dataset, "dataset_info.json")):
            builder = tfds.builder_from_directory(dataset)
        else:
            builder = tfds.builder(dataset, data_dir=data_dir or None)
        if split.split("[")[0] not in builder.info.splits:
            known = ", ".join(builder.info.splits) or "none: it was not prepared"
            told = f"it has {known}; name one by the setting split"
            raise UserError(f"TFDS data set {dataset} has no split {split}: {told}")
        return builder.as_data_source(split=split)
    except ImportError as e:
        reason = "needs TensorFlow for its features: pip install tensorflow-cpu"
        raise UserError(f"TFDS data set {dataset} {reason} ({e})") from e
    except tfds.core.DatasetNotFoundError as e:
        where = data_dir or "TFDS's folder of data sets"
        reason = f"it is not in {where}: name the folder of its version, as DIR/{dataset}/1.0.0"
        raise UserError(f"TFDS data set {dataset} cannot be opened: {reason}") from e
    except (OSError, ValueError, NotImplementedError) as e:
        reason = " ".join(str(e).split())[:300]
        raise UserError(f"TFDS data set {dataset} cannot be opened: {reason}") from e


def _no_path(content: Any) -> Audio:
    raise BadEntry(f"the example holds no recording {ascii(content)[:80]}")


def _plain(value: Any) -> Any:
    """numpy's values as Python's; bytes as text where they are UTF-8."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return value


def _as_wav(wave: np.ndarray, rate: int) -> bytes:
    """A waveform of integers [samples] or [samples, channels] as a WAV file.

    Raises:
      BadEntry: it is none, or its rate is unknown.
    """
    import soundfile

    if rate <= 0:
        raise BadEntry("the waveform's rate is not stated: give sample_rate")
    if wave.dtype.kind not in "if" or wave.ndim not in (1, 2) or wave.size == 0:
        raise BadEntry(f"the audio is {wave.dtype} {list(wave.shape)}, no waveform")
    if wave.dtype.kind == "i":
        low, high = int(wave.min()), int(wave.max())
        kind = np.int16 if -(2**15) <= low and high < 2**15 else np.int32
        if not (-(2**31) <= low and high < 2**31):
            raise BadEntry("the waveform has samples of more than 32 bits")
        wave = wave.astype(kind)
    subtype = {"int16": "PCM_16", "int32": "PCM_32"}.get(wave.dtype.name, "FLOAT")
    file = io.BytesIO()
    soundfile.write(file, wave, rate, subtype=subtype, format="WAV")
    return file.getvalue()
