"""The compiled parts of generation: prompts into caches, and rows one after the other.

Each part is one program per shape; caches are donated, so they are changed in place. The numbers
that steer a sequence (`Numbers`) come from the host with every call: there are few of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.inference.sampling import choose, delay_mask
from bagpiper_jax.inference.served_model import ServedModel
from bagpiper_jax.modeling.qwen3 import LayerCache

# rows that one call of `generate_rows` can return
CHUNK = 64
IDLE, TEXT, AUDIO = 0, 1, 2
RUNNING, CUT = 0, -1
_MARKERS = tuple(vocab_lib.MODALITIES[m] for m in ("text", "audio"))


class Caches(NamedTuple):
    """What stays on the device: R sequences with S slots.

    Attributes:
      layers: keys and values of each layer.
      hidden: [R, D]; of the last position, which predicts the next row.
    """

    layers: list[LayerCache]
    hidden: jax.Array


class Numbers(NamedTuple):
    """What steers R sequences; every field is [R].

    A guided message takes two sequences: the conditional one, and one whose context is zeros. The
    second is fed the rows of the first, its leader.

    Attributes:
      kind: IDLE, TEXT or AUDIO; of the message that is generated.
      leader: whose rows it is fed; itself if it is conditional.
      guide: the sequence without condition that guides it; itself if there is none.
      length: positions in the cache.
      step: rows of the message so far.
      frames: of an audio message, −1 while stream 0 goes on.
      ended: RUNNING, the end token, or CUT where `max_rows` came first.
      seed, branch: of the random numbers, uint32.
      temperature, top_p, cfg, top_k, min_rows, max_rows: see `Sampling`.
    """

    kind: np.ndarray
    leader: np.ndarray
    guide: np.ndarray
    length: np.ndarray
    step: np.ndarray
    frames: np.ndarray
    ended: np.ndarray
    seed: np.ndarray
    branch: np.ndarray
    temperature: np.ndarray
    top_p: np.ndarray
    cfg: np.ndarray
    top_k: np.ndarray
    min_rows: np.ndarray
    max_rows: np.ndarray

    @classmethod
    def idle(cls, rows: int) -> Numbers:
        zeros = {name: np.zeros(rows, np.int32) for name in cls._fields}
        for name in ("leader", "guide"):
            zeros[name] = np.arange(rows, dtype=np.int32)
        for name in ("temperature", "top_p", "cfg"):
            zeros[name] = np.ones(rows, np.float32)
        for name in ("seed", "branch"):
            zeros[name] = np.zeros(rows, np.uint32)
        return cls(**zeros)


class Prompts(NamedTuple):
    """P pieces of context of up to T positions, for the sequences `rows`.

    Attributes:
      rows: int [P]; R, which no sequence is, for padding.
      starts: int [P]; positions that the sequence has before.
      counts: int [P]; positions of this piece.
      tokens: int [P, T, K].
      mel, mel_frames, audio_index: as in `Batch`; W is 0 where there is no audio.
    """

    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    mel: np.ndarray
    mel_frames: np.ndarray
    audio_index: np.ndarray


def extend(model: ServedModel, caches: Caches, prompts: Prompts) -> tuple[Caches, jax.Array]:
    """Pieces of context into the caches.

    Returns:
      (the caches, which of "text" and "audio" is the likelier next marker, int [P]).
    """
    x = model.embed(prompts.tokens)
    if prompts.mel.shape[1]:
        features = model.encode_audio(prompts.mel, prompts.mel_frames)
        index = jnp.maximum(prompts.audio_index, 0)[..., None]
        audio = jnp.take_along_axis(features.astype(x.dtype), index, axis=1)
        x = jnp.where((prompts.audio_index >= 0)[..., None], audio, x)
    own = jax.tree.map(lambda c: c[prompts.rows], caches.layers)
    hidden, grown = model.extend(x, own, prompts.starts)
    layers = jax.tree.map(
        lambda old, new: old.at[prompts.rows].set(new, mode="drop"), caches.layers, grown
    )
    last = jnp.take_along_axis(hidden, (prompts.counts - 1)[:, None, None], axis=1)[:, 0]
    text, audio = (model.special_logits(last, m, m + 1)[..., 0] for m in _MARKERS)
    caches = Caches(layers, caches.hidden.at[prompts.rows].set(last, mode="drop"))
    return caches, (audio > text).astype(jnp.int32)


def blank(model: ServedModel, rows: int, slots: int) -> Caches:
    """A context of zeros: equal sequences, and the hidden state of their every position [S, D]."""
    x = model.embed(jnp.zeros((rows, slots, model.config.vocab.num_streams), jnp.int32))
    decoder = model.config.decoder
    layers = [LayerCache.empty(decoder, rows, slots, x.dtype) for _ in model.layers]
    hidden, layers = model.extend(x, layers, jnp.zeros(rows, jnp.int32))
    return Caches(layers, hidden[0])


def put_blank(caches: Caches, blank: Caches, row, length) -> Caches:
    """The first `length` positions of `blank` as the context of a sequence."""
    layers = [old.put(row, new) for old, new in zip(caches.layers, blank.layers, strict=True)]
    return Caches(layers, caches.hidden.at[row].set(blank.hidden[length - 1]))


def copy(caches: Caches, source, target) -> Caches:
    """One sequence as another one."""
    return jax.tree.map(lambda x: x.at[target].set(x[source]), caches)


def resize(caches: Caches, rows, slots: int) -> Caches:
    """Sequences `rows`, int [R'], in this order, with another number of slots."""
    return Caches([c.resized(rows, slots) for c in caches.layers], caches.hidden[rows])


def generate_rows(
    model: ServedModel,
    caches: Caches,
    numbers: Numbers,
    limit,
    pause,
    *,
    kinds: frozenset[int],
    guided: bool,
    bound: int,
    nucleus: bool,
):
    """Up to `limit` rows of every running sequence.

    Args:
      limit: int, at most CHUNK.
      pause: bool; whether to return as soon as one message has ended.
      kinds: of the messages that run.
      guided: whether some sequence has a guide.
      bound, nucleus: see `choose`.

    Returns:
      (caches, the numbers that have changed by name, rows int32 [CHUNK, R, K]: a sequence's own
      come first, zeros follow).
    """
    vocab = model.config.vocab
    streams, size = vocab.num_streams, vocab.stream_size
    ends = jnp.array([vocab_lib.EOS, vocab_lib.EOT])
    s = jax.tree.map(jnp.asarray, numbers)
    leads = (s.leader == jnp.arange(len(s.leader))) & (s.kind != IDLE)
    settings, limits = (s.temperature, s.top_k, s.top_p), {"bound": bound, "nucleus": nucleus}

    def mixed(logits):
        if not guided:
            return logits
        scale = s.cfg.reshape(-1, *(1,) * (logits.ndim - 1))
        return scale * logits + (1 - scale) * logits[s.guide]

    def next_text(hidden, keys, step):
        ids = jnp.arange(vocab.codec_start)
        stops = jnp.isin(ids, ends)
        allowed = (ids >= vocab.text_start) | (stops & (step[:, None] >= s.min_rows[:, None]))
        logits = jnp.where(allowed, mixed(model.text_logits(hidden)), -jnp.inf)
        token = choose(logits, keys, *settings, **limits)
        rows = jnp.zeros((len(token), streams), jnp.int32).at[:, 0].set(token)
        return rows, jnp.where(jnp.isin(token, ends), token, RUNNING)

    def next_audio(hidden, keys, step, frames):
        # each stream's pad and codes, then the two end tokens
        stops = model.special_logits(hidden, vocab_lib.EOS, vocab_lib.EOT + 1)
        stops = jnp.broadcast_to(stops[:, None], (len(stops), streams, 2))
        logits = mixed(jnp.concatenate([model.codec_logits(hidden), stops], axis=-1))
        allowed = delay_mask(step, frames, vocab.delays, s.min_rows, s.max_rows)
        kinds_of = np.repeat([0, 1, 2], [1, size - 1, 2])
        index = choose(
            jnp.where(allowed[..., kinds_of], logits, -jnp.inf), keys, *settings, **limits
        )
        first = index[:, 0]
        settles = (frames < 0) & ((first == 0) | (first >= size))
        frames = jnp.where(settles, step, frames)
        done = (first >= size) & (step >= frames + vocab.delay_rows) & (frames >= 0)
        end = jnp.where(done, ends[jnp.clip(first - size, 0, 1)], RUNNING)
        return vocab.stream_pads + jnp.where(index < size, index, 0), end, frames

    def body(carry):
        at, caches, length, step, frames, ended, out = carry
        running = leads & (ended == RUNNING)
        keys = jax.vmap(
            lambda seed, branch, step: jax.random.fold_in(
                jax.random.fold_in(jax.random.key(seed), branch), step
            )
        )(s.seed, s.branch, step)
        hidden = caches.hidden
        if kinds == {TEXT}:
            row, end = next_text(hidden, keys, step)
        else:
            row, end, settled = next_audio(hidden, keys, step, frames)
            frames = jnp.where(running & (s.kind == AUDIO), settled, frames)
            if TEXT in kinds:
                is_text = s.kind == TEXT
                text, text_end = next_text(hidden, keys, step)
                row = jnp.where(is_text[:, None], text, row)
                end = jnp.where(is_text, text_end, end)
        takes = running & (end == RUNNING)
        step = step + takes
        end = jnp.where(takes & (step >= s.max_rows), CUT, end)
        ended = jnp.where(running, end, ended)
        row = jnp.where(takes[:, None], row, 0)
        out = out.at[at].set(row)
        takes = takes[s.leader]
        hidden, layers = model.extend(model.embed(row[s.leader])[:, None], caches.layers, length)
        return at + 1, Caches(layers, hidden[:, 0]), length + takes, step, frames, ended, out

    def goes_on(carry):
        at, ended = carry[0], carry[5]
        running = jnp.any(leads & (ended == RUNNING))
        new_end = jnp.any(leads & (ended != s.ended))
        return (at < limit) & running & ~(pause & new_end)

    out = jnp.zeros((CHUNK, len(leads), streams), jnp.int32)
    carry = (jnp.int32(0), caches, s.length, s.step, s.frames, s.ended, out)
    _, caches, length, step, frames, ended, out = jax.lax.while_loop(goes_on, body, carry)
    changed = {"length": length, "step": step, "frames": frames, "ended": ended}
    return caches, changed, out
