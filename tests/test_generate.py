"""Generation with the KV cache against a plain loop that runs the whole sequence at every row."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generation import clear_model, prompts
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.requests import Request
from bagpiper_jax.inference.sampling import Sampling, choose, delay_mask
from bagpiper_jax.input_pipeline.batch import pack_row, stack_rows

ROWS, WINDOWS = 80, 8  # of the plain loop's batch: every prompt here and its answer fit


@pytest.fixture(scope="module")
def model(make_model):
    return clear_model(make_model)


@pytest.fixture(scope="module")
def engine_of(model):
    """One engine, with the weights of a model of these shapes."""
    engine = Engine(model)

    def serving(other):
        engine.replace_weights(nnx.to_pure_dict(nnx.state(other)))
        return engine

    return serving


def generate(engine, asked, settings, modality, seed=0):
    """(modality, rows, end) of the first message that answers each prompt."""
    plan = modality and (modality,)
    requests = [Request(prompt, settings, plan, seed) for prompt in asked]
    answers = engine.generate(requests)
    return [(m.modality, m.rows, m.end) for m in (messages[0] for (messages,) in answers)]


@nnx.jit
def whole_sequence(model, batch):
    """Hidden states of every row of a batch, without a cache; [B, T, D]."""
    features = model.encode_audio(batch.mel, batch.mel_frames)
    x = model.embed(batch.tokens, batch.audio_index, features)
    return model.decode(x, batch.positions, batch.segment_ids)


def plain_greedy(model, prompt, modality, cfg, min_rows, max_rows):
    """One prompt, no cache: at every row the whole sequence again, by the rules.

    What follows the sequence is padding, so that one shape is compiled.
    """
    vocab = model.config.vocab
    block = model.config.encoder.block_windows
    marker = np.zeros((1, vocab.num_streams), np.int32)
    marker[0, 0] = vocab_lib.MODALITIES[modality]
    rows = np.zeros((0, vocab.num_streams), np.int32)

    def hidden(context, rows, audio):
        tokens = np.concatenate([context, rows])
        full = dataclasses.replace(
            prompt, tokens=tokens, loss_mask=np.zeros(tokens.shape, bool), audio=audio
        )
        batch = stack_rows([pack_row([full], ROWS, WINDOWS, block)])
        return whole_sequence(model, batch)[0, len(tokens) - 1]

    context = np.concatenate([prompt.tokens, marker])
    head = np.asarray(model.head[: vocab.size])
    emb = np.asarray(model.stream_emb[...])
    frames, last = None, vocab.delay_rows
    ends = [vocab_lib.EOS, vocab_lib.EOT]
    while len(rows) < max_rows:
        h = np.asarray(hidden(context, rows, prompt.audio))
        g = np.asarray(hidden(np.zeros_like(context), rows, ())) if cfg != 1 else h
        row = np.zeros(vocab.num_streams, np.int32)
        for k in range(1 if modality == "text" else vocab.num_streams):
            shift = emb[k] if k else 0.0
            logits = cfg * (head @ (h + shift)) + (1 - cfg) * (head @ (g + shift))
            allowed = np.zeros(vocab.size, bool)
            start, stop = vocab.stream_range(k)
            if modality == "text":
                allowed[vocab.text_start : vocab.codec_start] = True
                allowed[ends] = len(rows) >= min_rows
            elif frames is None and k == 0:
                if len(rows) + last >= max_rows:  # room for the delay and nothing else
                    allowed[start] = True
                else:
                    allowed[start + 1 : stop] = True
                    allowed[start] = last > 0 and len(rows) + last >= min_rows
                    allowed[ends] = len(rows) >= min_rows
            elif k == 0 and len(rows) == frames + last:
                allowed[ends] = True
            elif not 0 <= len(rows) - vocab.delays[k] < (frames or max_rows):
                allowed[start] = True
            else:
                allowed[start + 1 : stop] = True
            row[k] = np.where(allowed, logits, -np.inf).argmax()
        if modality == "text" or frames is not None or not last:
            if row[0] in ends:
                return rows, row[0]
        elif row[0] in (*ends, vocab.stream_pads[0]):
            # the other streams were chosen as if it went on, which their range here allows
            frames, row[0] = len(rows), vocab.stream_pads[0]
        rows = np.concatenate([rows, row[None]])
    return rows, -1


@pytest.mark.parametrize("modality", ["text", "audio"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_cached_batched_generation_equals_the_plain_loop(model, engine_of, modality, cfg):
    vocab = model.config.vocab
    asked = prompts(vocab)
    settings = Sampling(temperature=0.0, top_k=20, cfg=cfg, min_rows=3, max_rows=12)
    answers = generate(engine_of(model), asked, {modality: settings}, modality)
    for prompt, (kind, rows, end) in zip(asked, answers, strict=True):
        want, want_end = plain_greedy(model, prompt, modality, cfg, 3, 12)
        assert kind == modality and end == want_end
        np.testing.assert_array_equal(rows, want)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_parallel_streams_equal_the_plain_loop(model, cfg):
    """The same weights read as a model whose streams are not delayed."""
    config = model.config
    vocab = dataclasses.replace(config.vocab, stream_delay=0)
    parallel = nnx.clone(model)
    parallel.config = dataclasses.replace(config, vocab=vocab)
    settings = Sampling(temperature=0.0, top_k=20, cfg=cfg, min_rows=3, max_rows=12)
    asked = prompts(vocab)
    answers = generate(Engine(parallel), asked, {"audio": settings}, "audio")
    for prompt, (_, rows, end) in zip(asked, answers, strict=True):
        want, want_end = plain_greedy(parallel, prompt, "audio", cfg, 3, 12)
        assert end == want_end
        np.testing.assert_array_equal(rows, want)
        assert not np.isin(rows, vocab.stream_pads).any()


@functools.partial(jax.jit, static_argnums=(2, 3))
def mask_of(step, frames, streams, delay, *limits):
    return delay_mask(step, frames, delay * np.arange(streams), *limits)


@hypothesis.settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2), st.integers(0, 12), st.data())
def test_delay_mask_admits_whole_messages_only(streams, delay, min_rows, data):
    """Any choices inside the mask are a message of T frames and the delay, T codes per stream."""
    late = delay * (streams - 1)
    max_rows = data.draw(st.integers(max(min_rows, late) + 1, 24))
    frames, kinds = -1, []
    for step in range(max_rows + 1):
        at, settled, *limits = (np.array([n]) for n in (step, frames, min_rows, max_rows))
        mask = np.asarray(mask_of(at, settled, streams, delay, *limits))[0]
        assert mask.any(axis=-1).all()
        row = [data.draw(st.sampled_from(np.flatnonzero(m).tolist())) for m in mask]
        if frames < 0 and row[0] != 1:
            assert row[0] == 0 or step >= min_rows
            frames, row[0] = step, 0
            if not late:
                break
        elif row[0] == 2:
            break
        kinds.append(row)
    kinds = np.array(kinds).reshape(-1, streams)
    assert min_rows <= len(kinds) == frames + late <= max_rows
    for k in range(streams):
        first = k * delay
        assert (kinds[first : first + frames, k] == 1).all() and kinds[:, k].sum() == frames


def test_end_tokens_wait_for_min_rows_and_stop_the_row(model, engine_of):
    """With a head whose end token is extreme, a message ends at the first row that prefers it."""
    vocab = model.config.vocab
    eager = nnx.clone(model)
    eager.lm_head[...] = eager.lm_head[...].at[vocab_lib.EOT].mul(50.0)
    engine = engine_of(eager)
    asked = prompts(vocab)
    for modality in ("text", "audio"):
        settings = Sampling(temperature=0.0, top_k=5, cfg=1.0, min_rows=4, max_rows=9)
        answers = generate(engine, asked, {modality: settings}, modality)
        ended = [len(rows) for _, rows, end in answers if end == vocab_lib.EOT]
        assert ended and min(ended) >= 4 and max(ended) < 9
        assert all(len(rows) == 9 for _, rows, end in answers if end == -1)
        again = generate(
            engine, asked, {modality: dataclasses.replace(settings, min_rows=0)}, modality
        )
        assert min(len(rows) for _, rows, end in again if end == vocab_lib.EOT) < 4


def test_sampled_tokens_stay_in_their_ranges_and_seeds_reproduce(model, engine_of):
    vocab = model.config.vocab
    asked = prompts(vocab)
    both = {
        "audio": Sampling(temperature=1.5, top_k=17, cfg=2.0, min_rows=30, max_rows=40),
        "text": Sampling(temperature=1.5, top_k=50, cfg=1.0, min_rows=30, max_rows=40),
    }
    engine = engine_of(model)
    audio = generate(engine, asked, both, "audio", seed=1)
    for _, rows, _ in audio:
        for k in range(vocab.num_streams):
            start, stop = vocab.stream_range(k)
            assert (rows[:, k] >= start).all() and (rows[:, k] < stop).all()
    for _, rows, _ in generate(engine, asked, both, "text", seed=1):
        assert (rows[:, 0] >= vocab.text_start).all() and (rows[:, 0] < vocab.codec_start).all()
        assert (rows[:, 1:] == 0).all()
    again = generate(engine, asked, both, "audio", seed=1)
    other = generate(engine, asked, both, "audio", seed=2)
    assert all((a[1] == b[1]).all() for a, b in zip(audio, again, strict=True))
    assert any(a[1].shape != b[1].shape or (a[1] != b[1]).any() for a, b in zip(audio, other))


def test_predicted_modality_is_the_most_likely_marker(model, engine_of):
    vocab, block = model.config.vocab, model.config.encoder.block_windows
    asked = prompts(vocab)
    settings = {
        m: Sampling(temperature=0.0, top_k=1, cfg=1.0, min_rows=1, max_rows=3)
        for m in ("text", "audio")
    }
    for marker in ("text", "audio"):
        leaning = nnx.clone(model)
        other = vocab_lib.MODALITIES["audio" if marker == "text" else "text"]
        mine = leaning.lm_head[vocab_lib.MODALITIES[marker]]
        # the other marker's logit is always below: zero against a clearly positive one
        leaning.lm_head[...] = leaning.lm_head[...].at[other].set(-mine)
        answers = generate(engine_of(leaning), asked, settings, None)
        for prompt, (kind, _, _) in zip(asked, answers, strict=True):
            batch = stack_rows([pack_row([prompt], ROWS, WINDOWS, block)])
            hidden = whole_sequence(leaning, batch)[0, len(prompt) - 1]
            logits = leaning.logits(hidden)[0]
            text, audio = (float(logits[vocab_lib.MODALITIES[m]]) for m in ("text", "audio"))
            assert kind == ("text" if text >= audio else "audio")


def test_choose_follows_the_distribution_and_top_k():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)

    def draw(temperature, top_k, top_p=1.0):
        settings = (jnp.full(draws, x) for x in (temperature, top_k, top_p))
        return choose(jnp.tile(logits, (draws, 1)), keys, *settings, bound=8, nucleus=top_p < 1)

    tokens = draw(1.0, 3)
    counts = np.bincount(tokens, minlength=4)
    want = np.array([0.5, 0.3, 0.15]) / 0.95 * draws
    assert counts[3] == 0
    chi_square = ((counts[:3] - want) ** 2 / want).sum()
    assert chi_square < 13.8  # p = 0.001 at two degrees of freedom
    assert (draw(0.0, 3) == 0).all()


@pytest.mark.parametrize(
    "values",
    [
        dict(temperature=-1.0),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(cfg=-0.1),
        dict(min_rows=9, max_rows=9),
    ],
)
def test_impossible_settings_are_refused(values):
    good = Sampling(temperature=0.5, top_k=5, cfg=1.0, min_rows=1, max_rows=9)
    with pytest.raises(UserError):
        dataclasses.replace(good, **values)
