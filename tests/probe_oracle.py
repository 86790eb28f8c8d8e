"""A made-up corpus of tones for the probes, and a pipeline that knows its scenes."""

from types import SimpleNamespace

import numpy as np

from bagpiper_jax.evaluation import rendering_probe
from bagpiper_jax.evaluation import text_metrics as metrics
from bagpiper_jax.inference.sampling import AUDIO, TEXT
from bagpiper_jax.input_pipeline.scenes import Clip, Corpus, plan_scene, render_scene

SEED = 3
SOUNDS = ("a gong", "rain", "a large dog", "howling wind", "a ship horn", "birdsong")


def tone_corpus():
    """Tones under the names of words and sounds; no two clips alike."""
    clips, audio = [], {}

    def add(kind, text, voice, split, label="", seconds=0.3):
        name = f"c{len(clips):03}"
        samples = int(seconds * 16_000)
        tone = np.sin(np.arange(samples) * (0.02 + 0.003 * len(clips)))
        audio[name] = np.round(8000 * tone).astype(np.int16)
        clip = Clip(
            name, kind, label or text, text, voice, split, False, seconds, "", "", "", "", samples
        )
        clips.append(clip)

    for voice, split in (("allison", "train"), ("slt", "train"), ("awb", "test")):
        for word in metrics.DIGITS:
            add("digit", word, voice, split)
        for letter in "ABCDEF":
            add("letter", letter, voice, split)
        add("phrase", "good morning", voice, split)
        add("phrase", "please hold the line", voice, split, seconds=0.5)
    for label in (*SOUNDS, *(f"{sound} far away" for sound in SOUNDS)):
        for split in ("train", "test"):
            add("sound", "", "", split, label)
    add("music", "", "", "train", "slow organ music", 1.0)
    return Corpus(clips, audio)


class Oracle:
    """A pipeline that knows the scenes: right captions, and audio that is the scene's own."""

    sampling = {"text": TEXT, "audio": AUDIO}
    codec = SimpleNamespace(encode=lambda wav: wav, decode=lambda codes: codes)

    def __init__(self, corpus, splits=("dev", "test_a", "test_b"), count=60):
        self.captions, self.wavs, self.words, self.scenes = {}, {}, {}, {}
        self.settings = []
        for split in splits:
            scenes = [
                plan_scene(corpus, SEED, index, split, profile)
                for profile in ("scene", "spelling")
                for index in range(count)
            ]
            if split == "test_a":
                phrases = rendering_probe.spoken_scenes(corpus, split, {"phrase": 2}, SEED)
                scenes += [spoken.scene for spoken in phrases]
            for scene in scenes:
                wav = render_scene(corpus, scene)
                self.captions[wav.tobytes()] = scene.caption
                self.wavs[scene.caption] = wav
                self.scenes[wav.tobytes()] = scene
                spoken = [event.text for event in scene.events if event.voice]
                self.words[wav.tobytes()] = " ".join(spoken)
        for clip in corpus.clips.values():
            wav = corpus.audio[clip.id].astype(np.float32) / 32768
            self.words[wav.tobytes()] = clip.text

    def describe_batch(self, wavs, *, sampling, seed=0):
        return [self.captions[wav.tobytes()] for wav in wavs]

    def render_batch(self, texts, *, sampling, seed=0):
        self.settings.append(sampling)
        return [self.wavs[text] for text in texts]


class Ears:
    """Hears what the oracle's scenes say; in other audio, nothing."""

    def __init__(self, oracle):
        self.words = oracle.words

    def transcribe_all(self, wavs):
        for wav in wavs:
            yield self.words.get(wav.tobytes(), "").capitalize() + "."
