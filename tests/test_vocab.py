"""The id layout, text ids and the delay pattern."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.modeling.config import from_dict, get_config, to_dict
from bagpiper_jax.vocab import Vocabulary

# special 0…255, text 256…265, stream 0: 266 (pad) 267…271, stream 1: 272 (pad) 273…277,
# stream 2: 278 (pad) 279…283
SMALL = Vocabulary(text_size=10, num_streams=3, codebook_size=5)

vocabularies = st.builds(
    Vocabulary,
    text_size=st.integers(1, 200_000),
    num_streams=st.integers(1, 32),
    codebook_size=st.integers(1, 4096),
    zero_text_id_is_pad=st.booleans(),
)
small_vocabularies = st.builds(
    Vocabulary,
    text_size=st.integers(1, 300),
    num_streams=st.integers(1, 9),
    codebook_size=st.integers(1, 40),
)


@st.composite
def vocab_and_codes(draw):
    vocab = draw(small_vocabularies)
    shape = (draw(st.integers(0, 12)), vocab.num_streams)
    elements = st.integers(0, vocab.codebook_size - 1)
    return vocab, draw(hnp.arrays(np.int32, shape, elements=elements))


def test_the_8b_layout():
    vocab = Vocabulary()
    assert vocab.size == 160_392
    assert (vocab.text_start, vocab.codec_start) == (256, 152_192)
    assert vocab.codec_size == 8 * 1025
    assert vocab.stream_range(0) == (152_192, 153_217)
    assert vocab.stream_range(7) == (159_367, 160_392)
    assert vocab.stream_pads.tolist() == [152_192 + 1025 * k for k in range(8)]
    weights = vocab.token_weights()
    assert weights.shape == (160_392,) and weights.dtype == np.float32
    assert (weights[:152_192] == 1.0).all() and (weights[152_192:] == 0.125).all()


def test_the_order_of_a_files_keys_permutes_no_rows():
    """`model.json` sorted, as YAML writers do, and backwards."""
    wanted = get_config("bagpiper_8b")

    def ordered(values, reverse):
        if not isinstance(values, dict):
            return values
        return {key: ordered(values[key], reverse) for key in sorted(values, reverse=reverse)}

    for reverse in (False, True):
        config = from_dict(ordered(to_dict(wanted), reverse))
        assert config == wanted
        assert (config.vocab.text_start, config.vocab.codec_start) == (256, 152_192)
        assert config.vocab.stream_pads.tolist() == [152_192 + 1025 * k for k in range(8)]


def test_special_ids():
    names = "pad bos eos eot system user assistant text audio image video toolcall".split()
    assert [Vocabulary().name(i) for i in range(12)] == [f"<|{name}|>" for name in names]
    assert [vocab_lib.PAD, vocab_lib.BOS, vocab_lib.EOS, vocab_lib.EOT] == [0, 1, 2, 3]
    assert vocab_lib.ROLES == {"system": 4, "user": 5, "assistant": 6}
    assert list(vocab_lib.MODALITIES.values()) == [7, 8, 9, 10, 11]


@given(vocabularies)
def test_ranges_tile_the_vocabulary(vocab):
    edges = [0, vocab.text_start, vocab.codec_start]
    edges += [vocab.stream_range(k)[1] for k in range(vocab.num_streams)]
    sizes = [256, vocab.text_size] + [vocab.codebook_size + 1] * vocab.num_streams
    assert edges == [0, *np.cumsum(sizes).tolist()] and edges[-1] == vocab.size
    starts = [vocab.stream_range(k)[0] for k in range(vocab.num_streams)]
    assert starts == vocab.stream_pads.tolist()


@given(small_vocabularies)
def test_every_id_has_a_name_of_its_own(vocab):
    names = [vocab.name(i) for i in range(vocab.size)]
    assert len(set(names)) == vocab.size
    assert sum(name.endswith(":pad") for name in names) == vocab.num_streams


def test_names_and_their_limits():
    assert [SMALL.name(i) for i in (0, 255, 256, 265)] == [
        "<|pad|>",
        "<|unused_255|>",
        "text:0",
        "text:9",
    ]
    assert [SMALL.name(i) for i in (266, 267, 271, 272, 283)] == [
        "s0:pad",
        "s0:0",
        "s0:4",
        "s1:pad",
        "s2:4",
    ]
    for token in (-1, 284):
        with pytest.raises(ValueError, match="not in"):
            SMALL.name(token)
    for stream in (-1, 3):
        with pytest.raises(ValueError, match="stream"):
            SMALL.stream_range(stream)


def test_weights_per_stream():
    vocab = Vocabulary(text_size=2, num_streams=2, codebook_size=2, codec_weight=(0.5, 0.25))
    assert vocab.token_weights()[256:].tolist() == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    "sizes",
    [
        {"text_size": 0},
        {"num_streams": 0},
        {"codebook_size": -1},
        {"num_streams": 3, "codec_weight": (1.0, 1.0)},
    ],
)
def test_impossible_sizes(sizes):
    with pytest.raises(ValueError):
        Vocabulary(**sizes)


@given(st.data(), st.booleans())
def test_text_ids_come_back(data, quirk):
    vocab = Vocabulary(text_size=data.draw(st.integers(1, 300)), zero_text_id_is_pad=quirk)
    ids = data.draw(st.lists(st.integers(0, vocab.text_size - 1)))
    tokens = vocab.text_to_tokens(ids)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [0 if quirk and i == 0 else i + 256 for i in ids]
    assert vocab.tokens_to_text(tokens) == ids


def test_only_text_ids_become_text():
    tokens = [1, 0, 255, 256, 257, 265, 266, 283]
    assert SMALL.tokens_to_text(tokens) == [0, 1, 9]
    quirk = Vocabulary(text_size=10, num_streams=3, codebook_size=5, zero_text_id_is_pad=True)
    assert quirk.tokens_to_text(tokens) == [0, 0, 1, 9]


@pytest.mark.parametrize("ids", [[-1], [10], [0, 3, 10]])
def test_text_ids_outside_the_tokenizer(ids):
    with pytest.raises(ValueError, match="text ids"):
        SMALL.text_to_tokens(ids)


def test_delay_rows_by_hand():
    codes = [[0, 1, 2], [4, 3, 2]]
    rows = [
        [267, 272, 278],
        [271, 274, 278],
        [266, 276, 281],
        [266, 272, 281],
    ]
    interleaved = SMALL.interleave(codes)
    assert interleaved.tolist() == rows and interleaved.dtype == np.int32
    assert SMALL.deinterleave(rows).tolist() == codes


def test_one_stream_has_no_delay():
    vocab = Vocabulary(text_size=1, num_streams=1, codebook_size=4)
    assert vocab.interleave([[3], [0]]).tolist() == [[261], [258]]


def test_parallel_streams_have_no_pads():
    parallel = dataclasses.replace(SMALL, stream_delay=0)
    codes = [[0, 1, 2], [4, 3, 2]]
    assert parallel.interleave(codes).tolist() == [[267, 274, 281], [271, 276, 281]]
    assert parallel.deinterleave(parallel.interleave(codes)).tolist() == codes
    with pytest.raises(ValueError, match="stream_delay"):
        dataclasses.replace(SMALL, stream_delay=-1)


@given(vocab_and_codes(), st.integers(0, 3))
def test_delay_round_trip(sample, delay):
    vocab, codes = sample
    vocab = dataclasses.replace(vocab, stream_delay=delay)
    rows = vocab.interleave(codes)
    late = delay * (vocab.num_streams - 1)
    assert vocab.delay_rows == late and rows.shape == (len(codes) + late, vocab.num_streams)
    for k in range(vocab.num_streams):
        start, stop = vocab.stream_range(k)
        assert ((rows[:, k] >= start) & (rows[:, k] < stop)).all()
        first = k * delay
        holes = np.r_[rows[:first, k], rows[first + len(codes) :, k]]
        assert (holes == start).all() and len(holes) == late
        assert (rows[first : first + len(codes), k] == start + 1 + codes[:, k]).all()
    back = vocab.deinterleave(rows)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, codes)


def test_what_is_no_code_is_clipped():
    # a pad, an end token, text, another stream's ids
    rows = np.array([[266, 2, 283], [2, 283, 0], [271, 266, 266]])
    assert SMALL.deinterleave(rows).tolist() == [[0, 4, 0]]
    rows = np.array([[272, 272, 0], [260, 273, 0], [266, 266, 279], [266, 266, 266]])
    assert SMALL.deinterleave(rows).tolist() == [[4, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_rows_hold_no_frame(count):
    rows = SMALL.interleave(np.zeros((1, 3), int))[:count]
    assert SMALL.deinterleave(rows).shape == (0, 3)


@pytest.mark.parametrize(
    "codes", [[[0, 1]], [0, 1, 2], [[0, 5, 0]], [[-1, 0, 0]], np.zeros((1, 2, 3), int)]
)
def test_codes_that_do_not_fit(codes):
    with pytest.raises(ValueError, match="codes must"):
        SMALL.interleave(codes)
