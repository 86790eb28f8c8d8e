"""Packed rows of the mini corpus: a pure function of (seed, number), filled and mixed as asked."""

import multiprocessing
import operator
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.packed_scenes import (
    PackedScenes,
    load_corpus,
)
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.scenes import splits, train_captions
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.tokenizer import SentencePieceTokenizer

CORPUS = str(Path(__file__).parents[1] / "data" / "mini")
SHAPE = RowShape(length=512, windows=12)
WINDOW = 64  # rows that are planned together


class LoudnessCodec:
    """Eight times the loudness of a frame: the half of a codec that the pipeline uses."""

    sample_rate, hop, frame_rate, codebook_sizes = 16_000, 320, 50.0, (256,) * 8

    def encode(self, wav):
        frames = np.pad(wav, (0, -len(wav) % 320)).reshape(-1, 320)
        loudness = np.minimum(255 * np.abs(frames).max(1), 255).astype(np.int32)
        return np.repeat(loudness[:, None], 8, axis=1)


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(train_captions(load_corpus(CORPUS), 0, 300), 512)


@pytest.fixture(scope="module")
def make(tokenizer):
    def make(seed=0, shape=SHAPE, **settings):
        config = get_config("mini")
        return PackedScenes(
            CORPUS,
            config,
            tokenizer,
            LoudnessCodec(),
            shape=shape,
            num_rows=10_000,
            seed=seed,
            **settings,
        )

    return make


@pytest.fixture(scope="module")
def planned(make):
    """Three windows of planned rows."""
    source = make()
    return [source.planned_row(i) for i in range(3 * WINDOW)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_row_depends_on_seed_and_number_only(make):
    numbers = [70, 3, 0, 65]  # of two windows
    source = make()
    rows = {i: source[i] for i in numbers}
    for copy in (make(), pickle.loads(pickle.dumps(source))):
        assert all(same(copy[i], rows[i]) for i in sorted(numbers))
    assert not any(same(rows[0], rows[i]) for i in numbers if i)
    assert not same(make(seed=1)[0], rows[0])


def test_same_row_in_another_process(make):
    source = make()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply(operator.getitem, (source, 70))
    assert same(other, source[70])


def test_planned_sizes_are_the_true_ones(make, planned):
    source = make()
    for number in (0, 1, 64):
        row, plan = source[number], planned[number]
        lengths = [int((row.segment_ids == s + 1).sum()) for s in range(len(plan))]
        assert lengths == [p.rows for p in plan]
        assert row.segment_ids.max() == len(plan)
        heard = [p for p in plan if p.task == "audio_to_text"]
        starts = np.cumsum([0] + [p.windows for p in heard])
        used = [int((row.mel_frames[a:b] > 0).any()) for a, b in zip(starts, starts[1:])]
        assert used == [1] * len(heard) and not row.mel_frames[starts[-1] :].any()
        assert row.tokens.shape == (512, 8) and row.mel.shape == (12, 100, 128)


def test_rows_hold_the_captions_and_codes(make, planned, tokenizer):
    source = make(cfg_dropout=0.0)
    vocab = get_config("mini").vocab
    for segment, plan in enumerate(planned[0], start=1):
        row = source[0]
        tokens = row.tokens[row.segment_ids == segment]
        assert tokenizer.decode(vocab.tokens_to_text(tokens[:, 0])) == plan.scene.caption
        audio = tokens[(tokens[:, 7] > 0)]
        frames = -(-plan.scene.num_samples // 320) if plan.task == "text_to_audio" else -7
        assert len(audio) == frames + 7
        codes = vocab.deinterleave(audio)
        assert (codes == codes[:, :1]).all()  # as the codec made them, in every stream


def test_no_example_crosses_a_row_or_comes_twice(planned):
    for row in planned:
        assert sum(p.rows for p in row) <= SHAPE.length
        assert sum(p.windows for p in row) <= SHAPE.windows
    scenes = Counter(p.scene.index for row in planned for p in row)
    assert max(scenes.values()) == 1


def test_rows_are_full(planned):
    filled = np.array([sum(p.rows for p in row) for row in planned]) / SHAPE.length
    assert filled.mean() >= 0.97
    assert all(planned)


def test_tasks_share_the_tokens_as_asked(make, planned):
    def shares(rows):
        tokens = Counter()
        for row in rows:
            for p in row:
                tokens[p.task] += p.rows
        return {task: n / tokens.total() for task, n in tokens.items()}

    expected = {"text_to_audio": 0.5, "audio_to_text": 0.25, "text_only": 0.25}
    assert shares(planned) == pytest.approx(expected, abs=0.01)
    mixture = {"text_to_audio": 1.0, "audio_to_text": 3.0, "text_only": 0.0}
    source = make(mixture=mixture, shape=RowShape(512, 32))
    others = shares([source.planned_row(i) for i in range(WINDOW)])
    assert others == pytest.approx({"text_to_audio": 0.25, "audio_to_text": 0.75}, abs=0.015)


def test_nothing_held_out_is_trained_on(planned):
    clips = {name: clip.split for name, clip in load_corpus(CORPUS).clips.items()}
    for plan in (p for row in planned for p in row):
        scene = plan.scene
        assert not splits.wording_held_out(scene.template)
        assert splits.combination_home(e.label or e.kind for e in scene.events) == "train"
        for event in scene.events:
            assert all(clips[c] == "train" for c in event.clips)
            if event.kind in ("digits", "letters", "mixed"):
                assert splits.string_home(event.text) == "train"
        assert scene.bed is None or clips[scene.bed.clip] == "train"


def test_cfg_dropout(make):
    """Some examples with assistant audio lose their condition, always the same ones."""
    always, never, some = (make(cfg_dropout=p) for p in (1.0, 0.0, 0.5))
    plans = [always.plan_example("text_to_audio", i) for i in range(24)]
    dropped = 0
    for plan in plans:
        full, empty, maybe = (source.example(plan) for source in (never, always, some))
        assert full.tokens[0, 0] == 1 and empty.tokens[0, 0] == 0
        assert len(full) == len(empty) == plan.rows
        start, stop = full.cfg_span
        np.testing.assert_array_equal(empty.tokens[start:stop], full.tokens[start:stop])
        assert not empty.tokens[:start].any() and not empty.loss_mask[:start].any()
        dropped += maybe.tokens[0, 0] == 0
    assert 6 <= dropped <= 18
    text = always.example(always.plan_example("text_only", 0))
    assert text.tokens[0, 0] == 1


def test_the_order_of_a_configs_keys_means_nothing(make):
    mixture = {"text_only": 1.0, "text_to_audio": 2.0, "audio_to_text": 1.0}
    rows = [make(mixture=m).planned_row(0) for m in (mixture, dict(reversed(mixture.items())))]
    assert rows[0] == rows[1] == make().planned_row(0)


def test_bad_settings(make):
    with pytest.raises(ValueError, match=r"\['dictation'\] are none of"):
        make(mixture={"dictation": 1.0})
    with pytest.raises(UserError, match="rows of 50 positions and 12 mel windows"):
        make(shape=RowShape(50, 12))[0]
