"""Items → records: decoding, checks, cutting, codes; no other process is needed."""

import io
import os

import numpy as np
import pytest
import soundfile
from damaged_audio import damaged_files
from hypothesis import given
from hypothesis import strategies as st
from sound_sources import encoded, sound

from bagpiper_jax.audio import load_audio
from bagpiper_jax.conversation import encode_conversation
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import block_windows
from bagpiper_jax.input_pipeline.records import Record, conversation
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.preparation.decode import Rejected, decode
from bagpiper_jax.preparation.example import prepare_item
from bagpiper_jax.preparation.item import Audio, Item
from bagpiper_jax.preparation.options import Options, load_tools
from bagpiper_jax.preparation.pieces import check_level, cut
from bagpiper_jax.preparation.shards import find_duplicates

OPTIONS = Options()
LONG = sound(70, gaps=((20.0, 21.0), (24.0, 24.5), (45.0, 46.0)))


@pytest.fixture(scope="module")
def tools():
    return load_tools(OPTIONS)


def whole(audio):
    return np.concatenate(list(decode(audio, 1.0)))


def records(prepared):
    return [Record.from_bytes(made.data) for made in prepared.records]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_decodes_as_the_model_hears(tmp_path, kind, rate):
    """First channel, 16 kHz, the very samples of `load_audio`, from a path and from bytes."""
    stereo = np.stack([sound(9.3, 1, rate), sound(9.3, 2, rate)], 1)
    path = tmp_path / "clip.bin"
    path.write_bytes(encoded(stereo, rate, kind))
    heard = load_audio(str(path))
    np.testing.assert_allclose(whole(Audio(path=str(path))), heard, atol=1e-6)
    np.testing.assert_array_equal(
        whole(Audio(path=str(path))), whole(Audio(data=path.read_bytes()))
    )
    span = whole(Audio(path=str(path), start=2.0, stop=5.0))
    assert len(span) == 48_000
    np.testing.assert_allclose(span[400:-400], heard[32_400:79_600], atol=2e-3)
    assert len(whole(Audio(path=str(path), start=9.0))) == -(-round(0.3 * rate) * 16_000 // rate)


@pytest.mark.parametrize(
    ("start", "stop", "kind"),
    [(10.0, None, "span"), (3.0, 2.0, "span"), (-1.0, None, "span"), (0.0, 3.0, "truncated")],
)
def test_spans_that_are_not_there(start, stop, kind):
    audio = Audio(data=encoded(sound(2.0)), start=start, stop=stop)
    with pytest.raises(Rejected) as e:
        whole(audio)
    assert e.value.kind == kind


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "endless")
    os.symlink("loop", tmp_path / "loop")
    for name in ("pipe", "endless", "loop", "nothing", "", ".", "a\0b", "x" * 300):
        with pytest.raises(Rejected) as e:
            whole(Audio(path=os.path.join(tmp_path, name)))
        assert e.value.kind in ("unreadable", "missing") and "\n" not in e.value.reason


def test_a_few_of_the_damaged_files(tools):
    """Of every tenth, those that must go do, and each other one is whole or told off."""
    for name, data, must in list(damaged_files())[::10]:
        try:
            prepare_item(Item(name, (Audio(data=data),), "a sound"), "", OPTIONS, tools)
            assert not must, name
        except Rejected as e:
            assert e.reason and "0x" not in e.reason, name


def test_a_record_is_what_the_clip_is(tools):
    audio = Audio(data=encoded(sound(3.3, rate=44_100), 44_100, "OGG"))
    item = Item("a", (audio,), "A tone.", domain="sound", provenance={"line": 7})
    prepared = prepare_item(item, "set/", OPTIONS, tools)
    (record,) = records(prepared)
    clip = record.clips[0]
    wav, rate = soundfile.read(io.BytesIO(clip.audio), dtype="float32")
    assert (rate, len(wav), record.id) == (16_000, clip.num_samples, "set/a")
    np.testing.assert_allclose(wav, whole(audio), atol=2**-15)
    np.testing.assert_array_equal(clip.codes, tools.codec.encode(wav))
    assert record.provenance["line"] == 7 and -40 < record.provenance["prepared"]["lufs"][0] < 0
    for task, (rows, windows) in prepared.records[0].sizes.items():
        messages = conversation(record, task)
        example = encode_conversation(messages, tools.config.vocab, tools.tokenizer)
        block = tools.config.encoder.block_windows
        assert rows == len(example)
        assert windows == sum(block_windows(len(mel.frames), block) for _, mel in example.audio)
    assert set(prepared.records[0].sizes) == {"text_to_audio", "audio_to_text", "text_only"}


@pytest.mark.parametrize("keep", ["mel", "both", "neither"])
def test_what_is_kept(tools, keep):
    item = Item("a", (Audio(data=encoded(sound(2.5))),), "A tone.")
    (record,) = records(prepare_item(item, "", Options(keep=keep), tools))
    clip = record.clips[0]
    assert (clip.audio is not None) == (keep == "both")
    if keep == "neither":
        assert record.tasks() == ("text_to_audio", "text_only")
        return
    expected = mel_windows(whole(item.audios[0]))
    np.testing.assert_array_equal(clip.windows().frames, expected.frames)
    np.testing.assert_allclose(clip.windows().mel, expected.mel, atol=2e-3)


def test_peaks_over_full_scale_are_brought_down_not_clipped():
    wav = 5.0 * sound(1.0)
    (piece,) = cut([wav])
    assert np.abs(piece.pcm).max() == 32767
    np.testing.assert_allclose(piece.wav() / piece.wav().max(), wav / wav.max(), atol=1e-4)


def test_long_recordings_are_cut_in_pauses():
    pieces = list(cut(np.array_split(LONG, 9)))
    ends = [piece.start + len(piece.pcm) for piece in pieces]
    assert [piece.start for piece in pieces] == [0, *ends[:-1]] and ends[-1] == len(LONG)
    assert 20.0 < ends[0] / 16_000 < 21.0, "the longest pause of the first 30 s"
    assert 45.0 < ends[1] / 16_000 < 46.0
    assert all(piece.in_pause for piece in pieces)
    joined = np.concatenate([piece.wav() for piece in pieces])
    np.testing.assert_allclose(joined, LONG, atol=2**-15)
    assert len(list(cut([LONG[: 30 * 16_000]]))) == 1
    (padded,) = cut([LONG[: 30 * 16_000 + 320]])
    assert (len(padded.pcm), padded.trimmed) == (30 * 16_000, 320)
    loud = list(cut([sound(61)]))
    assert not any(piece.in_pause for piece in loud[:-1])


@given(st.integers(1, 150 * 160), st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
def test_pieces_cover_any_recording_once(hundredths, chunks):
    wav = np.random.default_rng(hundredths).standard_normal(hundredths * 100).astype(np.float32)
    cuts = np.cumsum([c * 40 for c in chunks])
    pieces = list(cut(np.split(wav, cuts[cuts < len(wav)])))
    lengths = [len(piece.pcm) for piece in pieces]
    assert sum(lengths) + pieces[0].trimmed == len(wav) and max(lengths) <= 30 * 16_000
    if len(pieces) > 1:
        assert min(lengths[:-1]) >= 15 * 16_000 and lengths[-1] >= 5 * 16_000
    starts = np.cumsum([0, *lengths[:-1]])
    assert [piece.start for piece in pieces] == starts.tolist()


def test_a_caption_goes_with_a_whole_recording_only(tools):
    audio = (Audio(data=encoded(LONG)),)
    with pytest.raises(Rejected, match="caption tells of the whole"):
        prepare_item(Item("long", audio, "Tones."), "", OPTIONS, tools)
    allowed = Options(captioned_pieces=True)
    for item, options in (
        (Item("long", audio, "Tones."), allowed),
        (Item("long", audio), OPTIONS),
    ):
        prepared = prepare_item(item, "", options, tools)
        made = records(prepared)
        assert [r.id for r in made] == [f"long/{n:04d}" for n in range(len(made))]
        assert all(r.caption == "" and r.tasks() == () for r in made)
        assert prepared.cuts == (len(made) - 1, 0)
        assert prepared.seconds == pytest.approx(70)
    dialogue = (("user", "audio", 0), ("assistant", "text", "A tone."))
    with pytest.raises(Rejected, match="dialogue lasts over 30 s"):
        prepare_item(Item("long", audio, messages=dialogue), "", OPTIONS, tools)


def test_pieces_that_hold_nothing_are_dropped_and_told(tools):
    wav = np.concatenate([LONG[: 44 * 16_000], np.zeros(50 * 16_000, np.float32)])
    prepared = prepare_item(Item("a", (Audio(data=encoded(wav)),)), "", OPTIONS, tools)
    assert {e.kind for e in prepared.dropped} == {"silent"}
    assert sum(prepared.cuts) + 1 == len(prepared.records) + len(prepared.dropped)


def test_dialogues_keep_of_each_recording_what_is_asked_for(tools):
    first, second = (Audio(data=encoded(sound(1.5, seed))) for seed in (1, 2))
    messages = (
        ("system", "text", "Be brief."),
        ("user", "audio", 0),
        ("assistant", "text", "<think>Once more, lower.</think>"),
        ("assistant", "audio", 1),
    )
    prepared = prepare_item(Item("d", (first, second), messages=messages), "", OPTIONS, tools)
    (record,) = records(prepared)
    heard, spoken = record.clips
    assert heard.audio is not None and heard.codes is None
    assert spoken.audio is None and spoken.codes is not None
    assert record.tasks() == ("dialogue",) and set(prepared.records[0].sizes) == {"dialogue"}
    example = encode_conversation(
        conversation(record, "dialogue"), tools.config.vocab, tools.tokenizer
    )
    assert prepared.records[0].sizes["dialogue"][0] == len(example)


@pytest.mark.parametrize(
    "change",
    [
        {"audios": (), "caption": " "},
        {"messages": (("user", "audio", 1), ("assistant", "text", "x")), "caption": ""},
        {"messages": (("user", "audio", "0"), ("assistant", "text", "x")), "caption": ""},
        {"messages": (("user", "audio", 0),), "caption": ""},
        {"messages": (("robot", "text", "x"),), "caption": ""},
        {"messages": (("assistant", "text", "x"),)},
        {"caption": "half a pair \ud800"},
        {"domain": "noise"},
        {"provenance": {"when": object()}},
        {"audios": (Audio(data=b""), Audio(data=b""))},
    ],
)
def test_entries_that_make_no_example(tools, change):
    fields = {"id": "a", "audios": (Audio(data=encoded(sound(1.0))),), "caption": "A tone."}
    with pytest.raises(Rejected) as e:
        prepare_item(Item(**fields | change), "", OPTIONS, tools)
    assert e.value.kind == "entry"


def test_text_alone_serves_text_alone(tools):
    prepared = prepare_item(Item("t", caption="A quiet room."), "", OPTIONS, tools)
    assert set(prepared.records[0].sizes) == {"text_only"} and prepared.seconds == 0


def test_loudness_is_that_of_bs_1770():
    """A sine of 997 Hz at full scale, in one channel, measures −3.01 LUFS."""
    t = np.arange(5 * 16_000) / 16_000
    (piece,) = cut([np.sin(2 * np.pi * 997 * t).astype(np.float32)])
    assert check_level(piece) == pytest.approx(-3.01, abs=0.1)
    (short,) = cut([np.sin(2 * np.pi * 997 * t[:1700]).astype(np.float32)])
    assert check_level(short) == pytest.approx(-3.01, abs=0.5)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6),
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))),
)
def test_the_first_of_equal_records_stays(shards, out):
    digests = [b"".join(bytes([n]) * 8 + b"\0" * 8 for n in shard) for shard in shards]
    seen, expected, left_out = set(), [], []
    for number, shard in enumerate(shards):
        later = set()
        left_out.append(frozenset(p for p in range(len(shard)) if (number, p) in out))
        for place, n in enumerate(shard):
            if place in left_out[-1]:
                continue
            if n in seen:
                later.add(place)
            seen.add(n)
        expected.append(later)
    assert find_duplicates(digests, left_out) == expected


@pytest.mark.parametrize("wrong", [{"keep": "all"}, {"timeout": 0}, {"shards": -1}])
def test_options_are_checked(wrong):
    with pytest.raises(UserError):
        Options(**wrong)
    with pytest.raises(UserError, match="no model directory"):
        load_tools(Options(model="/nowhere"))
