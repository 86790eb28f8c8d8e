"""`Record`, what a prepared data set holds of an example, and how it is laid out as a conversation.

Preparation writes records, the pipeline reads them. Sizes follow from a record alone, so that an
index of them is all that planning the packed rows needs.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from typing import Any

import msgpack
import numpy as np

from bagpiper_jax.conversation import MARKERS_PER_MESSAGE, Message
from bagpiper_jax.input_pipeline.batch import block_windows
from bagpiper_jax.log_mel import MelWindows, clip_tokens, mel_windows, num_windows
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.tokenizer import Tokenizer

FORMAT = 1
TASKS = ("text_to_audio", "audio_to_text", "text_only", "dialogue")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording of a record, mono at 16 kHz.

    Attributes:
      num_samples: its length.
      codes: uint16 [T, K], codec codes; None where it is only listened to.
      mel: windows of its log-mel, kept in float16; None where they are made from `audio`.
      audio: a FLAC file; None where it is only spoken, or `mel` is kept instead.
    """

    num_samples: int
    codes: np.ndarray | None = None
    mel: MelWindows | None = None
    audio: bytes | None = None

    def windows(self) -> MelWindows:
        """The windows that the encoder sees.

        Raises:
          ValueError: neither `mel` nor `audio` is kept.
        """
        if self.mel is not None:
            return self.mel
        if self.audio is None:
            raise ValueError("the clip keeps neither mel windows nor audio")
        import soundfile

        return mel_windows(soundfile.read(io.BytesIO(self.audio), dtype="float32")[0])


@dataclasses.dataclass(frozen=True)
class Record:
    """An example of a prepared data set: a captioned clip, or a dialogue.

    Attributes:
      id: unique in its set.
      caption: rich caption of the first clip; empty for a dialogue.
      messages: (role, modality, content) of a dialogue; content of audio is the clip's number.
      clips: the recordings.
      domain: speech, music, sound or mixed.
      language: BCP 47 tag of the caption and the speech, "und" where unknown.
      licence: SPDX id, or its name.
      provenance: where it came from and what was done to it, of plain values.
    """

    id: str
    caption: str = ""
    messages: tuple[tuple[str, str, str | int], ...] = ()
    clips: tuple[Clip, ...] = ()
    domain: str = "mixed"
    language: str = "und"
    licence: str = ""
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def tasks(self) -> tuple[str, ...]:
        """What can be learned from it, of TASKS."""
        if self.messages:
            return ("dialogue",)
        clip = self.clips[0] if self.clips else Clip(0)
        able = {
            "text_to_audio": clip.codes is not None,
            "audio_to_text": clip.mel is not None or clip.audio is not None,
            "text_only": True,
        }
        return tuple(task for task, can in able.items() if can and self.caption)

    def to_bytes(self) -> bytes:
        """As one msgpack map; `from_bytes` is the inverse."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["clips"] = [_pack_clip(clip) for clip in self.clips]
        return msgpack.packb({"format": FORMAT, **fields}, use_bin_type=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Inverse of `to_bytes`.

        Raises:
          ValueError: the bytes are no record, or of another format.
        """
        try:
            fields = msgpack.unpackb(data, raw=False)
            if fields.pop("format") != FORMAT:
                raise ValueError("the record is of another format: prepare the data again")
            fields["clips"] = tuple(_unpack_clip(clip) for clip in fields["clips"])
            fields["messages"] = tuple(map(tuple, fields["messages"]))
            return cls(**fields)
        except (msgpack.UnpackException, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"the bytes are no record: {e}") from e


def conversation(record: Record, task: str) -> list[Message]:
    """The messages of a record under a task (BAGPIPER, base tasks and dialogue).

    Raises:
      ValueError: the record cannot serve the task.
    """
    if task not in record.tasks():
        raise ValueError(f"record {record.id} cannot serve the task {task!r}")
    if task == "text_only":
        return [Message("assistant", "text", record.caption)]
    if task == "text_to_audio":
        return [
            Message("user", "text", record.caption),
            Message("assistant", "audio", record.clips[0].codes),
        ]
    if task == "audio_to_text":
        return [
            Message("user", "audio", record.clips[0].windows()),
            Message("assistant", "text", record.caption),
        ]
    return [
        Message(role, modality, content if modality == "text" else _spoken(record, role, content))
        for role, modality, content in record.messages
    ]


def sizes(
    record: Record, task: str, config: BagpiperConfig, tokenizer: Tokenizer
) -> tuple[int, int]:
    """Rows of the encoded conversation, and mel windows in whole encoder blocks; no audio is made.

    Raises:
      ValueError: the record cannot serve the task.
    """
    if task not in record.tasks():
        raise ValueError(f"record {record.id} cannot serve the task {task!r}")
    first = 0  # the clip of a captioned record
    turns = {
        "text_only": (("assistant", "text", record.caption),),
        "text_to_audio": (("user", "text", record.caption), ("assistant", "audio", first)),
        "audio_to_text": (("user", "audio", first), ("assistant", "text", record.caption)),
        "dialogue": record.messages,
    }[task]

    def length(role: str, number: int) -> int:
        clip = record.clips[number]
        return len(clip.codes) if role == "assistant" else clip.num_samples

    contents = ((role, c if modality == "text" else length(role, c)) for role, modality, c in turns)
    return conversation_size(contents, config, tokenizer)


def conversation_size(
    turns: Iterable[tuple[str, str | int]], config: BagpiperConfig, tokenizer: Tokenizer
) -> tuple[int, int]:
    """Rows of an encoded conversation, and mel windows in whole encoder blocks.

    Args:
      turns: role and content of each message: its text, or the length of its audio, in codec frames
        where it is the assistant's and else in samples.
      config: the model's, for delays and encoder blocks.
      tokenizer: text → ids.
    """
    rows, windows = 1, 0
    for role, content in turns:
        rows += MARKERS_PER_MESSAGE
        if isinstance(content, str):
            rows += len(tokenizer.encode(content))
        elif role == "assistant":
            rows += content + config.vocab.delay_rows
        else:
            rows += clip_tokens(content)
            windows += block_windows(num_windows(content), config.encoder.block_windows)
    return rows, windows


def _spoken(record: Record, role: str, number: int):
    clip = record.clips[number]
    return clip.codes if role == "assistant" else clip.windows()


def _pack_clip(clip: Clip) -> dict:
    packed: dict[str, Any] = {"num_samples": clip.num_samples, "audio": clip.audio}
    if clip.codes is not None:
        packed["codes"] = np.ascontiguousarray(clip.codes, "<u2").tobytes()
        packed["streams"] = clip.codes.shape[1]
    if clip.mel is not None:
        packed["mel"] = np.ascontiguousarray(clip.mel.mel, "<f2").tobytes()
        packed["mel_shape"] = list(clip.mel.mel.shape)
        packed["mel_frames"] = clip.mel.frames.tolist()
    return packed


def _unpack_clip(packed: dict) -> Clip:
    codes = mel = None
    if "codes" in packed:
        codes = np.frombuffer(packed["codes"], "<u2").reshape(-1, packed["streams"])
    if "mel" in packed:
        windows = np.frombuffer(packed["mel"], "<f2").reshape(packed["mel_shape"])
        frames = np.asarray(packed["mel_frames"], np.int32)
        mel = MelWindows(windows.astype(np.float32), frames)
    return Clip(packed["num_samples"], codes, mel, packed["audio"])
