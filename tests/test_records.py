"""Records: what is written is read, and sizes follow without making audio."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_twin import flac

from bagpiper_jax.conversation import encode_conversation
from bagpiper_jax.input_pipeline.batch import block_windows
from bagpiper_jax.input_pipeline.records import TASKS, Clip, Record, conversation, sizes
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.config import get_config

CONFIG = get_config("tiny")
STREAMS, BOOK = CONFIG.vocab.num_streams, CONFIG.vocab.codebook_size

texts = st.text("abc defg é日\n", min_size=1, max_size=40).filter(str.strip)


@st.composite
def clips(draw, codes=None, heard=None):
    samples = draw(st.integers(201, 40_000))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    wav = 0.1 * rng.standard_normal(samples).astype(np.float32)
    heard = draw(st.sampled_from(["no", "mel", "audio"])) if heard is None else heard
    tokens = mel = audio = None
    if draw(st.booleans()) if codes is None else codes:
        tokens = rng.integers(0, BOOK, (-(-samples // 320), STREAMS)).astype(np.uint16)
    if heard == "mel":
        windows = mel_windows(wav)
        kept = windows.mel.astype(np.float16).astype(np.float32)
        mel = type(windows)(kept, windows.frames)
    elif heard == "audio":
        audio = flac(wav)
    return Clip(samples, tokens, mel, audio)


@st.composite
def dialogues(draw):
    """Turns of text and audio, the assistant's audio as codes, others' as what is heard."""
    turns = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["text", "audio"])
            ),
            min_size=1,
            max_size=5,
        )
    )
    messages, recordings = [], []
    for role, modality in turns:
        if modality == "text":
            messages.append((role, modality, draw(texts)))
            continue
        heard = "no" if role == "assistant" else draw(st.sampled_from(["mel", "audio"]))
        messages.append((role, modality, len(recordings)))
        recordings.append(draw(clips(codes=role == "assistant", heard=heard)))
    return Record("d", messages=tuple(messages), clips=tuple(recordings))


@st.composite
def captioned(draw):
    return Record(
        id=draw(texts),
        caption=draw(texts),
        clips=tuple(draw(st.lists(clips(), max_size=2))),
        domain=draw(st.sampled_from(["speech", "music", "sound", "mixed"])),
        language="en",
        licence="CC-BY-4.0",
        provenance={"source": draw(texts), "cuts": [0.5, 2], "none": None},
    )


def assert_same(a, b):
    for name in ("id", "caption", "messages", "domain", "language", "licence", "provenance"):
        assert getattr(a, name) == getattr(b, name)
    assert len(a.clips) == len(b.clips)
    for one, other in zip(a.clips, b.clips):
        assert (one.num_samples, one.audio) == (other.num_samples, other.audio)
        for field, other_field in (
            (one.codes, other.codes),
            (one.mel and one.mel.mel, other.mel and other.mel.mel),
            (one.mel and one.mel.frames, other.mel and other.mel.frames),
        ):
            if field is None:
                assert other_field is None
            else:
                assert field.dtype == other_field.dtype
                np.testing.assert_array_equal(field, other_field)


@given(st.one_of(captioned(), dialogues()))
@settings(max_examples=40)
def test_round_trip(record):
    data = record.to_bytes()
    again = Record.from_bytes(data)
    assert_same(record, again)
    assert again.tasks() == record.tasks()
    assert again.to_bytes() == data


@given(st.one_of(captioned(), dialogues()))
@settings(max_examples=60)
def test_sizes_are_those_of_the_encoded_conversation(record):
    class Bytes:  # any text has ids
        def encode(self, text):
            return list(text.encode())

    block = CONFIG.encoder.block_windows
    for task in record.tasks():
        rows, windows = sizes(record, task, CONFIG, Bytes())
        example = encode_conversation(conversation(record, task), CONFIG.vocab, Bytes())
        assert rows == len(example)
        assert windows == sum(block_windows(len(c.frames), block) for _, c in example.audio)
    for task in set(TASKS) - set(record.tasks()):
        for call in (
            lambda task=task: sizes(record, task, CONFIG, Bytes()),
            lambda task=task: conversation(record, task),
        ):
            with pytest.raises(ValueError, match=f"cannot serve the task '{task}'"):
                call()


def test_tasks_follow_from_what_is_kept():
    codes = np.zeros((3, STREAMS), np.uint16)
    assert Record("a").tasks() == ()
    assert Record("a", caption="rain").tasks() == ("text_only",)
    assert Record("a", clips=(Clip(900, codes),)).tasks() == ()
    spoken = Record("a", caption="rain", clips=(Clip(900, codes),))
    assert spoken.tasks() == ("text_to_audio", "text_only")
    both = Record("a", caption="rain", clips=(Clip(900, codes, audio=b"flac"),))
    assert both.tasks() == TASKS[:3]
    assert Record("a", caption="x", messages=(("user", "text", "b"),)).tasks() == ("dialogue",)


def test_windows_of_mel_and_audio_are_alike():
    wav = np.sin(np.arange(16_000) / 9).astype(np.float32) * 0.5
    kept = Clip(16_000, audio=flac(wav)).windows()
    made = mel_windows(wav)
    np.testing.assert_allclose(kept.mel, made.mel, atol=0.02)  # FLAC has 16 bits
    assert Clip(16_000, mel=made).windows() is made
    with pytest.raises(ValueError, match="neither mel windows nor audio"):
        Clip(16_000).windows()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"garbage that is no map",
        msgpack.packb({"format": 1}),
        msgpack.packb({"format": 1, "id": "a", "clips": 3, "messages": []}),
        msgpack.packb([1, 2]),
    ],
)
def test_bytes_that_are_no_record(data):
    with pytest.raises(ValueError, match="no record|[Uu]npack|extra"):
        Record.from_bytes(data)


def test_another_format_is_told():
    data = msgpack.unpackb(Record("a").to_bytes(), raw=False) | {"format": 2}
    with pytest.raises(ValueError, match="another format"):
        Record.from_bytes(msgpack.packb(data))
