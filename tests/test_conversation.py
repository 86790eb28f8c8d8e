"""Sequence layout and loss masks against rows written by hand.

Ids of the vocabulary: text "a" 256 … "z" 281; stream 0: pad 282, codes 283…287; stream 1: pad 288,
codes 289…293; stream 2: pad 294, codes 295…299. 1 bos, 2 eos, 3 eot, 4 system, 5 user, 6 assistant,
7 text, 8 audio.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax.conversation import (
    Message,
    drop_condition,
    encode_conversation,
    encode_prompt,
)
from bagpiper_jax.log_mel import NUM_MELS, MelWindows
from bagpiper_jax.vocab import Vocabulary

VOCAB = Vocabulary(text_size=26, num_streams=3, codebook_size=5)
CODES = np.array([[0, 1, 2], [4, 3, 2]])
CODE_ROWS = [[283, 288, 294], [287, 290, 294], [282, 292, 297], [282, 288, 297]]


def clip(*frames):
    mel = np.zeros((len(frames), 100, NUM_MELS), np.float32)
    return MelWindows(mel, np.array(frames, np.int32))


def table(*rows):
    """Rows [T, 3] from single ids of stream 0 and whole rows."""
    return [row if isinstance(row, list) else [row, 0, 0] for row in rows]


def mask_table(text):
    """One character a row: "." no target, "0" stream 0, "*" all streams."""
    return [{".": [0, 0, 0], "0": [1, 0, 0], "*": [1, 1, 1]}[c] for c in text]


def user(text):
    return Message("user", "text", text)


def answer(text):
    return Message("assistant", "text", text)


SPOKEN = Message("assistant", "audio", CODES)

TABLES = {
    # name: messages, tokens, mask of "assistant", mask of "all"
    "text_only": (
        [answer("ab")],
        table(1, 6, 7, 256, 257, 2),
        ".00000",
        ".00000",
    ),
    "audio_to_text": (
        # 20 frames → 10 → 5 → 3 places for encoder features
        [Message("user", "audio", clip(20)), answer("c")],
        table(1, 5, 8, 0, 0, 0, 2, 6, 7, 258, 2),
        ".......0000",
        ".00...00000",
    ),
    "text_to_audio": (
        [user("az"), SPOKEN],
        table(1, 5, 7, 256, 281, 2, 6, 8, *CODE_ROWS, 2),
        "......00****0",
        ".0000000****0",
    ),
    "text, then audio": (
        [user("a"), answer("b"), SPOKEN],
        table(1, 5, 7, 256, 2, 6, 7, 257, 3, 6, 8, *CODE_ROWS, 2),
        ".....000000****0",
        ".0000000000****0",
    ),
    "system, user": (
        [Message("system", "text", "s"), user("u"), answer("v")],
        table(1, 4, 7, 274, 2, 5, 7, 276, 2, 6, 7, 277, 2),
        ".........0000",
        ".000000000000",
    ),
    "two users, system audio": (
        [Message("system", "audio", clip(8)), user("a"), user("b"), answer("")],
        table(1, 4, 8, 0, 2, 5, 7, 256, 3, 5, 7, 257, 2, 6, 7, 2),
        ".............000",
        ".00.000000000000",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_masks(name, letters):
    messages, tokens, assistant, everything = TABLES[name]
    for region, mask in (("assistant", assistant), ("all", everything)):
        example = encode_conversation(messages, VOCAB, letters, loss_region=region)
        assert example.tokens.tolist() == tokens
        assert example.loss_mask.astype(int).tolist() == mask_table(mask)
        assert (example.tokens.dtype, example.loss_mask.dtype) == (np.int32, bool)
        assert len(example) == len(tokens)


def test_where_audio_features_go(letters):
    first, second = clip(100, 20), clip(9)
    messages = [Message("user", "audio", first), user("a"), Message("user", "audio", second)]
    example = encode_conversation([*messages, answer("b")], VOCAB, letters)
    (start, windows), (start2, windows2) = example.audio
    assert (start, start2) == (3, 3 + 16 + 1 + 4 + 2)
    assert windows is first and windows2 is second
    for at, count in ((start, 16), (start2, 2)):
        assert example.tokens[at - 1, 0] == 8  # <|audio|>
        assert not example.tokens[at : at + count].any()
        assert example.tokens[at + count, 0] in (2, 3)
    assert example.cfg_span is None


def test_text_id_zero_of_the_published_checkpoints(letters):
    quirk = dataclasses.replace(VOCAB, zero_text_id_is_pad=True)
    example = encode_conversation([user("a"), answer("ba")], quirk, letters)
    assert example.tokens.tolist() == table(1, 5, 7, 0, 2, 6, 7, 257, 0, 2)
    assert example.loss_mask.astype(int).tolist() == mask_table(".....000.0")
    everything = encode_conversation([user("a")], quirk, letters, loss_region="all")
    assert everything.loss_mask.astype(int).tolist() == mask_table(".00.0")


def test_cfg_dropout_keeps_the_audio_only(letters):
    for region in ("assistant", "all"):
        full = encode_conversation([user("az"), SPOKEN], VOCAB, letters, loss_region=region)
        assert full.cfg_span == (8, 13)
        dropped = drop_condition(full)
        assert dropped.tokens.tolist() == table(0, 0, 0, 0, 0, 0, 0, 0, *CODE_ROWS, 2)
        assert dropped.loss_mask.astype(int).tolist() == mask_table("........****0")
        assert dropped.tokens.dtype == np.int32


def test_cfg_dropout_keeps_one_message_and_drops_features(letters):
    messages = [Message("user", "audio", clip(20)), SPOKEN, user("a"), SPOKEN, answer("b")]
    full = encode_conversation(messages, VOCAB, letters)
    dropped = drop_condition(full)
    assert full.audio and dropped.audio == ()
    assert len(dropped) == len(full)
    start, stop = full.cfg_span
    assert dropped.tokens[start:stop].tolist() == table(*CODE_ROWS, 3)
    assert dropped.tokens.any(1).sum() == dropped.loss_mask.any(1).sum() == 5


def test_cfg_dropout_needs_assistant_audio(letters):
    messages = [Message("user", "audio", clip(20)), answer("b")]
    with pytest.raises(ValueError, match="assistant-audio"):
        drop_condition(encode_conversation(messages, VOCAB, letters))


def test_prompt(letters):
    prompt = encode_prompt([Message("user", "audio", clip(20))], VOCAB, letters)
    assert prompt.tokens.tolist() == table(1, 5, 8, 0, 0, 0, 2, 6)
    assert [start for start, _ in prompt.audio] == [3]
    assert not prompt.loss_mask.any() and prompt.loss_mask.shape == prompt.tokens.shape
    assert prompt.cfg_span is None


def test_prompt_that_already_holds_an_answer(letters):
    """A given caption, then the audio: the rows are those of the training example."""
    messages = [user("a"), answer("b")]
    prompt = encode_prompt(messages, VOCAB, letters)
    assert prompt.tokens.tolist() == table(1, 5, 7, 256, 2, 6, 7, 257, 3, 6)


texts = st.text(st.sampled_from("abcxyz"), max_size=6)
clips = st.lists(st.integers(1, 100), min_size=1, max_size=3).map(lambda frames: clip(*frames))
codes = st.integers(0, 5).map(lambda n: np.ones((n, 3), int))
random_messages = (
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.just("text"), texts)
    | st.builds(Message, st.sampled_from(["system", "user"]), st.just("audio"), clips)
    | st.builds(Message, st.just("assistant"), st.just("audio"), codes)
)


conversations = st.lists(random_messages, min_size=1, max_size=6)


@given(messages=conversations)
def test_prompt_is_the_start_of_the_training_rows(letters, messages):
    prompt = encode_prompt(messages, VOCAB, letters)
    whole = encode_conversation([*messages, answer("q")], VOCAB, letters)
    assert prompt.tokens.tolist() == whole.tokens[: len(prompt)].tolist()


@given(messages=conversations, region=st.sampled_from(["assistant", "all"]))
def test_any_conversation(letters, messages, region):
    example = encode_conversation(messages, VOCAB, letters, loss_region=region)
    assert len(example) == len(example.loss_mask)
    tokens, row = example.tokens, 1
    assert tokens[0].tolist() == [1, 0, 0] and not example.loss_mask[0].any()
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        if message.modality == "audio":
            known = message.role == "assistant"
            size = len(message.content) + 2 if known else message.content.num_tokens
        else:
            size = len(message.content)
        stop = row + 3 + size
        role = {"system": 4, "user": 5, "assistant": 6}[message.role]
        assert tokens[row : row + 2, 0].tolist() == [role, 7 if message.modality == "text" else 8]
        same = following is not None and following.role == message.role
        assert tokens[stop - 1].tolist() == [3 if same else 2, 0, 0]
        counts = region == "all" or message.role == "assistant"
        assert example.loss_mask[row : row + 2, 0].tolist() == [counts, counts]
        assert example.loss_mask[stop - 1].tolist() == [counts, False, False]
        row = stop
    assert row == len(example)


def test_bad_input(letters):
    with pytest.raises(ValueError, match="at least one message"):
        encode_conversation([], VOCAB, letters)
    with pytest.raises(ValueError, match="loss_region"):
        encode_conversation([answer("a")], VOCAB, letters, loss_region="user")
    with pytest.raises(ValueError, match="role 'tool'"):
        Message("tool", "text", "a")
    with pytest.raises(ValueError, match="modality 'image'"):
        Message("user", "image", "a")
    with pytest.raises(ValueError, match="codes must"):
        encode_conversation([Message("assistant", "audio", CODES + 5)], VOCAB, letters)
