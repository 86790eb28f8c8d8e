"""Packing: layout by hand, and examples of one row that know nothing of each other."""

import dataclasses

import jax
import numpy as np
import pytest

from bagpiper_jax.conversation import Example, Message, encode_conversation
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import block_windows, build_batch, pack_row, stack_rows
from bagpiper_jax.log_mel import NUM_MELS, MelWindows
from bagpiper_jax.vocab import Vocabulary

LENGTH, WINDOWS, BLOCK = 80, 6, 2  # of a row; the tiny model's encoder blocks


def clip(frames, seed=0):
    """Random windows; `frames` is of the whole clip."""
    count = -(-frames // 100)
    mel = np.random.default_rng(seed).standard_normal((count * 100, NUM_MELS), dtype=np.float32)
    mel[frames:] = 0
    valid = np.clip(frames - 100 * np.arange(count), 0, 100).astype(np.int32)
    return MelWindows(mel.reshape(count, 100, NUM_MELS), valid)


def codes(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 16, (frames, 4))


@pytest.fixture(scope="module")
def examples(tiny_config, small_tokenizer):
    """Two examples that both hear a clip; the second answers with audio."""
    text = Message("assistant", "text", "a gong, then rain")
    conversations = (
        [Message("user", "audio", clip(150, seed=1)), text],
        [Message("user", "audio", clip(60, seed=2)), Message("assistant", "audio", codes(9))],
    )
    return [encode_conversation(c, tiny_config.vocab, small_tokenizer) for c in conversations]


@pytest.fixture(scope="module")
def loss(tiny_model):
    return jax.jit(tiny_model.loss)


@pytest.fixture(scope="module")
def hidden(tiny_model):
    @jax.jit
    def run(batch):
        features = tiny_model.encode_audio(batch.mel, batch.mel_frames)
        x = tiny_model.embed(batch.tokens, batch.audio_index, features)
        return tiny_model.decode(x, batch.positions, batch.segment_ids)

    return lambda *rows: np.asarray(run(stack_rows(rows)))


def pack(*examples):
    return pack_row(examples, LENGTH, WINDOWS, BLOCK)


def test_layout_by_hand(letters):
    vocab = Vocabulary(text_size=26, num_streams=2, codebook_size=3)
    first = clip(208, seed=1)  # windows of 100, 100, 8 frames: 13, 13, 1 tokens
    second = clip(20, seed=2)  # 3 tokens
    answer = Message("assistant", "text", "b")
    a = encode_conversation([Message("user", "audio", first), answer], vocab, letters)
    b = encode_conversation([Message("user", "audio", second), answer], vocab, letters)
    row = pack_row([a, b], length=60, windows=6, block=2)

    assert (len(a), len(b)) == (35, 11)
    assert row.segment_ids.tolist() == [1] * 35 + [2] * 11 + [0] * 14
    assert row.positions.tolist() == [*range(35), *range(11)] + [0] * 14
    np.testing.assert_array_equal(row.tokens[:35], a.tokens)
    np.testing.assert_array_equal(row.tokens[35:46], b.tokens)
    assert not row.tokens[46:].any() and not row.loss_mask[46:].any()
    np.testing.assert_array_equal(row.loss_mask[:46], [*a.loss_mask, *b.loss_mask])
    # the first clip fills windows 0…2 and, with its block, 3; the second starts at 4
    assert row.mel_frames.tolist() == [100, 100, 8, 0, 20, 0]
    np.testing.assert_array_equal(row.mel[:3], first.mel)
    np.testing.assert_array_equal(row.mel[4], second.mel[0])
    assert not row.mel[3].any() and not row.mel[5].any()
    index = [-1] * 60
    index[3:30] = range(27)  # 13 + 13 + 1 tokens, which follow each other
    index[38:41] = [52, 53, 54]  # 13 · 4 and on
    assert row.audio_index.tolist() == index


def test_windows_of_a_clip_shorter_in_the_middle(letters):
    """Index runs over valid tokens only."""
    vocab = Vocabulary(text_size=26, num_streams=2, codebook_size=3)
    windows = MelWindows(np.ones((2, 100, NUM_MELS), np.float32), np.array([20, 9], np.int32))
    example = encode_conversation([Message("user", "audio", windows)], vocab, letters)
    row = pack_row([example], length=10, windows=2, block=1)
    assert row.audio_index.tolist() == [-1] * 3 + [0, 1, 2, 13, 14] + [-1] * 2


@pytest.mark.parametrize("windows, block, taken", [(0, 4, 0), (1, 4, 4), (4, 4, 4), (9, 4, 12)])
def test_windows_are_taken_in_whole_blocks(windows, block, taken):
    assert block_windows(windows, block) == taken


def test_what_does_not_fit(examples):
    a, b = examples
    with pytest.raises(ValueError, match="rows do not fit"):
        pack_row([a, b], len(a) + len(b) - 1, WINDOWS, BLOCK)
    with pytest.raises(ValueError, match="more than 2 windows"):
        pack_row([a, b], LENGTH, 2, BLOCK)
    pack_row([a, b], len(a) + len(b), 3, BLOCK)  # the last block need not be whole


def targets(example):
    return example.loss_mask[1:, 0].sum()  # nothing predicts the first row


def combined(loss, *examples):
    """Loss of examples each in a row of its own, weighted by stream-0 targets."""
    parts = [(targets(e), float(loss(stack_rows([pack(e)]))[0])) for e in examples]
    return sum(n * value for n, value in parts) / sum(n for n, _ in parts)


def test_loss_of_a_packed_row_is_that_of_its_examples(loss, examples):
    a, b = examples
    for order in ((a, b), (b, a)):
        packed, metrics = loss(stack_rows([pack(*order)]))
        np.testing.assert_allclose(packed, combined(loss, a, b), rtol=1e-6)
        assert metrics["targets"][0] == targets(a) + targets(b)


def test_nothing_predicts_the_first_row_of_an_example(loss, examples, tiny_config):
    """Even if it were a target: the row before belongs to another example."""
    pads = tiny_config.vocab.stream_pads  # any tokens that every stream may have as targets
    a, b = (
        Example(np.tile(pads, (len(e), 1)), np.ones((len(e), len(pads)), bool), e.audio)
        for e in examples
    )
    packed, metrics = loss(stack_rows([pack(a, b)]))
    assert metrics["targets"].tolist() == [len(a) + len(b) - 2] * 4
    np.testing.assert_allclose(packed, combined(loss, a, b), rtol=1e-6)


def test_loss_of_a_batch_is_that_of_its_rows(loss, examples):
    a, b = examples
    together, _ = loss(stack_rows([pack(a), pack(b, a)]))
    np.testing.assert_allclose(together, combined(loss, a, b, a), rtol=1e-6)


def changed(example, seed):
    """Same shape, other tokens and other audio."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 256 + 320, example.tokens.shape).astype(np.int32)
    audio = tuple(
        (start, dataclasses.replace(windows, mel=rng.standard_normal(windows.mel.shape)))
        for start, windows in example.audio
    )
    return Example(tokens, ~example.loss_mask, audio)


def test_an_example_does_not_see_the_others(hidden, examples):
    a, b = examples
    for first, second in ((a, b), (b, a)):
        span = slice(len(first), len(first) + len(second))
        packed = hidden(pack(first, second))[0]
        other = hidden(pack(changed(first, 3), second))[0]
        assert not np.allclose(packed[: len(first)], other[: len(first)], atol=0.01)
        np.testing.assert_array_equal(packed[span], other[span])
        after = hidden(pack(first, changed(second, 4)))[0]
        np.testing.assert_array_equal(packed[: len(first)], after[: len(first)])
        alone = hidden(pack(second))[0, : len(second)]
        np.testing.assert_allclose(packed[span], alone, atol=1e-5)


def test_rows_of_a_batch_do_not_see_each_other(hidden, examples):
    a, b = examples
    batch = hidden(pack(a), pack(b))
    other = hidden(pack(changed(a, 3)), pack(b))
    np.testing.assert_array_equal(batch[1], other[1])
    np.testing.assert_allclose(batch[1], hidden(pack(b))[0], atol=1e-5)


@pytest.fixture(scope="module")
def conversations():
    """Of 30, 20, 48 and 10 rows: n codes take n + 3 rows, and `<|bos|>` and markers 4."""
    speech = [[Message("assistant", "audio", codes(n - 7))] for n in (30, 20, 5 + 7, 10)]
    speech[2].insert(0, Message("user", "audio", clip(250)))  # 33 + 3 rows
    return speech


def test_build_batch_fills_rows_first_fit(tiny_config, small_tokenizer, conversations):
    batch = build_batch(conversations, tiny_config, small_tokenizer, length=50)
    lengths = [[(ids == s).sum() for s in range(1, ids.max() + 1)] for ids in batch.segment_ids]
    assert lengths == [[30, 20], [48], [10]]
    assert batch.tokens.shape == batch.loss_mask.shape == (3, 50, 4)
    assert batch.mel_frames.tolist() == [[0] * 4, [100, 100, 50, 0], [0] * 4]
    assert batch.mel.shape == (3, 4, 100, NUM_MELS)
    assert batch.positions.shape == batch.audio_index.shape == (3, 50)


def test_build_batch_without_audio_holds_one_block(tiny_config, small_tokenizer):
    batch = build_batch(
        [[Message("assistant", "text", "a")]], tiny_config, small_tokenizer, length=9
    )
    assert batch.mel.shape == (1, 2, 100, NUM_MELS) and not batch.mel_frames.any()
    loud = [Message("user", "text", "a")]
    batch = build_batch(
        [loud], tiny_config, small_tokenizer, length=9, loss_region="all", windows=4
    )
    assert batch.loss_mask[0, 1:5, 0].all() and batch.mel.shape[1] == 4


def test_build_batch_refuses_what_is_too_long(tiny_config, small_tokenizer, conversations):
    with pytest.raises(UserError, match="conversation 2 takes 48 rows, the context holds 47"):
        build_batch(conversations, tiny_config, small_tokenizer, length=47)
