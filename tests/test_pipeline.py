"""`Pipeline` with the embedded model: forms of audio, conversations, streams, what answers are."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import soundfile

import bagpiper_jax as bp
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.replies import Sound, Text, TextStream, split_plan

CAPTION = 'A woman says "four two".'


@pytest.fixture(scope="module")
def pipe():
    pipe = bp.Pipeline.load()
    # short answers, and few programs to compile
    short = {"min_rows": 8, "max_rows": 40, "cfg": 1.0}
    pipe.sampling = {k: dataclasses.replace(s, **short) for k, s in pipe.sampling.items()}
    return pipe


@pytest.fixture(scope="module")
def sound(pipe):
    return pipe.render(CAPTION)


def test_audio_in_every_form_is_the_same_clip(pipe, sound, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, sound, 16_000, subtype="FLOAT")
    stereo = np.stack([sound, np.zeros_like(sound)], axis=1)
    forms = [path, str(path), path.read_bytes(), sound, stereo, (stereo, 16_000)]
    clips = [pipe.listen(form).content.mel for form in forms]
    for clip in clips:
        np.testing.assert_array_equal(clip, clips[0])
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(sound, 2), 32_000, format="FLAC")
    assert pipe.listen(buffer.getvalue()).content.mel.shape == clips[0].shape


@pytest.mark.parametrize("seconds", [1, 8, 29, 31, 180])
def test_clips_of_up_to_30_seconds(pipe, seconds):
    """Longer ones are refused: none is cut, or heard in part, without a word."""
    noise = np.random.default_rng(0).standard_normal(seconds * 8_000).astype(np.float32)
    if seconds > 30:
        with pytest.raises(UserError, match="is longer than 30 s: cut it first"):
            pipe.listen((noise, 8_000))
        return
    clip = pipe.listen((noise, 8_000)).content
    assert clip.num_tokens == 13 * seconds and clip.mel.shape[0] == seconds
    assert isinstance(pipe.describe((noise, 8_000)), str)


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_a_stream_is_the_whole(pipe, sound, modality):
    """Character by character and sample by sample, and several open at once."""
    ask = [pipe.listen(sound)] if modality == "text" else [bp.Message("user", "text", CAPTION)]
    want = pipe.chat(ask, modalities=[modality])
    streams = [pipe.stream(ask, modalities=[modality]) for _ in range(2)]
    for deltas in zip(*streams, strict=True):
        assert [d.end for d in deltas] == [deltas[0].end] * 2
        got = deltas[0].text if modality == "text" else deltas[0].wav
        np.testing.assert_array_equal(got, deltas[1].text if modality == "text" else deltas[1].wav)
    deltas = list(pipe.stream(ask, modalities=[modality]))
    assert len(deltas) > 2 and [d.end for d in deltas[:-1]] == [False] * (len(deltas) - 1)
    if modality == "text":
        assert "".join(d.text for d in deltas) == want[0].content
    else:
        heard = np.concatenate([d.wav for d in deltas])
        np.testing.assert_array_equal(heard, pipe.play(want[0]))
        assert len(deltas[0].wav) == 0 < len(deltas[2].wav)  # long before the message ends
    assert not pipe.engine.busy


def test_a_stream_that_is_closed_leaves_the_engine_free(pipe, sound):
    stream = pipe.stream([pipe.listen(sound)], modalities=["text"])
    next(stream)
    assert pipe.engine.busy
    stream.close()
    assert not pipe.engine.busy


def test_text_then_audio_in_one_answer(pipe):
    ask = [bp.Message("user", "text", CAPTION)]
    text, audio = pipe.chat(ask, modalities=("text", "audio"))
    assert (text.modality, audio.modality) == ("text", "audio")
    assert isinstance(text.content, str) and audio.content.shape[1] == 8
    assert pipe.play(audio).seconds == len(audio.content) / 50
    alone = pipe.chat(ask, modalities="text")
    assert alone[0].content == text.content
    # the conversation goes on from there
    (more,) = pipe.chat([*ask, text, audio, ask[0]], modalities=("audio",))
    assert len(more.content)


def test_hypotheses_of_a_request_differ_where_they_are_sampled(pipe):
    hot = {"text": dataclasses.replace(pipe.sampling["text"], temperature=1.5, top_k=0)}
    request = pipe.request([bp.Message("user", "text", "x")], ("text",), hot, 3, hypotheses=3)
    answers = [a[0].rows.tolist() for a in pipe.engine.generate([request])[0]]
    assert len({str(a) for a in answers}) == 3
    again = pipe.engine.generate([request])[0]
    assert [a[0].rows.tolist() for a in again] == answers


def test_a_plan_is_apart():
    text = Text.of("<think>\nA bell, then rain.\n</think>\n\nIt rains.")
    assert text == "It rains." and text.plan == "A bell, then rain."
    assert Text.of("It rains.").plan == "" and split_plan("<think>half") == ("half", "")


def test_half_a_character_waits():
    decode = lambda ids: bytes(ids).decode(errors="replace")  # noqa: E731
    stream = TextStream(decode)
    ids = list("aé▁𝄞z".encode())
    parts = [stream.push([i]) for i in ids] + [stream.finish()]
    assert "".join(parts) == "aé▁𝄞z" and "\ufffd" not in "".join(parts)
    assert parts[:3] == ["a", "", "é"]
    cut = TextStream(decode)
    assert cut.push(ids[:2]) == "a" and cut.finish() == "\ufffd"


def test_a_sound_is_an_array_that_plays(sound):
    assert sound.sample_rate == 16_000 and sound.seconds == len(sound) / 16_000
    assert sound[:160].seconds == 0.01 and (sound * 2).sample_rate == 16_000
    again = pickle.loads(pickle.dumps(sound))
    assert again.sample_rate == 16_000 and (again == sound).all()
    page = sound._repr_html_()
    assert page.count("<audio") == page.count("<img") == 1
    assert Sound.of(np.zeros(0), 16_000)._repr_html_().count("<img") == 0
