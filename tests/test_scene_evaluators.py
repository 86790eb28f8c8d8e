"""Strengths of guidance, the control of spoken strings, ViSQOL: figures known beforehand."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from probe_oracle import SEED, Ears, Oracle, tone_corpus

from bagpiper_jax.evaluation import asr, codec_eval
from bagpiper_jax.evaluation.rendering_probe import Spoken, control_by_kind
from bagpiper_jax.evaluation.scene_evaluators import guidance
from bagpiper_jax.inference.sampling import AUDIO
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus

CORPUS = str(Path(__file__).parents[1] / "data" / "mini")


def test_strings_are_rendered_at_each_strength_of_guidance_and_no_other():
    class Guided(Oracle):
        """Speaks with guidance 2 alone."""

        def render_batch(self, texts, *, sampling, seed=0):
            wavs = super().render_batch(texts, sampling=sampling, seed=seed)
            return wavs if sampling.cfg == 2 else [np.zeros(160, np.float32)] * len(texts)

    corpus = tone_corpus()
    pipe = Guided(corpus, splits=("test_a",))
    context = SimpleNamespace(
        pipeline=pipe, corpus=corpus, whisper=Ears(pipe), sampling=pipe.sampling, seed=SEED
    )
    points = guidance(context, digits=6, cfgs=(1.0, 2.0, 3.0)).figures
    assert [(p["cfg"], p["wer"].value, p["wer"].count) for p in points] == [
        (1, 1, 6),
        (2, 0, 6),
        (3, 1, 6),
    ]
    silent, spoken, again = (p["control"]["wer"].value for p in points)
    assert silent == again == 1 and spoken > 0.6
    assert pipe.settings == [dataclasses.replace(AUDIO, cfg=cfg) for cfg in (1.0, 2.0, 3.0)]


def test_the_control_hears_the_next_string_of_the_kind_with_other_words():
    spoken = [
        Spoken("digits", None, "one two"),
        Spoken("letters", None, "A B"),  # has no other of its kind
        Spoken("digits", None, "one two"),
        Spoken("digits", None, "one three four five"),
    ]
    found = control_by_kind(spoken, ["one", "A B", "two", "nine"], SEED)
    # "nine" against "one two" twice, and "one" against the last: 2 + 2 + 3 of 8 words
    assert set(found) == {"digits"} and found["digits"].value == pytest.approx(7 / 8)


@pytest.mark.slow
def test_visqol_tells_a_copy_from_noise_and_silence():
    pytest.importorskip("visqol")
    corpus = load_corpus(CORPUS)
    (clip,) = codec_eval.prompts(corpus, 1)
    wav = corpus.audio[clip.id].astype(np.float32) / 32768
    noise = wav.std() * np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    copies = [wav.copy(), wav + 0.1 * noise, noise, 0 * wav]
    copy, hiss, alone, silence = asr.visqol([wav] * 4, copies)
    assert copy > 4.5 > hiss > 2.5 > alone  # measured 5.0, 3.7 and 1.0
    assert silence == 1
