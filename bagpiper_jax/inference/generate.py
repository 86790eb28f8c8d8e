"""Autoregressive generation of one message with a KV cache and classifier-free guidance.

Source: arXiv 2602.05220 and the reference's inference (ESPnet SpeechLM).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.conversation import Example
from bagpiper_jax.inference.sampling import (
    Sampling,
    audio_logits,
    choose,
    delay_mask,
    text_logits,
)
from bagpiper_jax.input_pipeline.batch import Batch, block_windows, pack_row, stack_rows
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.qwen3 import KVCache

# prompts are padded to multiples of this, so that few shapes are compiled
_BUCKET = 64


class Generator:
    """Generates messages; compiled once per shape of prompts and settings."""

    def __init__(self, model: Bagpiper):
        self.config = model.config
        self._graph, self._params = nnx.split(model, nnx.Param)
        self._prefill = jax.jit(self._prefill_fn, static_argnames=("slots", "guided"))
        self._decode = jax.jit(
            self._decode_fn,
            static_argnames=("modality", "max_rows", "top_k", "guided"),
        )

    def replace_weights(self, params) -> None:
        """Other weights of the same shapes, without compiling again; a nested dict of arrays."""
        nnx.replace_by_pure_dict(self._params, params)

    def generate(
        self,
        prompts: Sequence[Example],
        sampling: dict[str, Sampling],
        *,
        modality: str | None = None,
        seed: int = 0,
    ) -> list[tuple[str, np.ndarray, int]]:
        """Answers prompts that end in `<|assistant|>`, as one batch.

        Args:
          prompts: from `encode_prompt`.
          sampling: settings by modality.
          modality: "text" or "audio" forces it; None takes the most likely one for each prompt.
          seed: of the sampling. A prompt's answer depends on its place in the batch.

        Returns:
          For each prompt (modality, content rows int32 [n, K], end token or −1 where `max_rows`
          came first).
        """
        batch = self._pack(prompts)
        if modality is None:
            chosen = [vocab_lib.MODALITIES[m] for m in ("text", "audio")]
            hidden, _ = self._prefill(
                self._params, batch, slots=batch.tokens.shape[1], guided=False
            )
            best = np.asarray(self._marker_logits(self._params, hidden))[:, chosen].argmax(-1)
            kinds = [("text", "audio")[i] for i in best]
        else:
            kinds = [modality] * len(prompts)
        answers: list = [None] * len(prompts)
        for kind in sorted(set(kinds)):
            members = [i for i, k in enumerate(kinds) if k == kind]
            part = Batch(*(field[members] for field in batch))
            rows, lengths, ends = self._message(part, kind, sampling[kind], seed)
            for i, row, length, end in zip(members, rows, lengths, ends, strict=True):
                answers[i] = (kind, row[:length], int(end))
        return answers

    def _pack(self, prompts: Sequence[Example]) -> Batch:
        """One prompt a row, padded on the right."""
        length = max(map(len, prompts))
        block = self.config.encoder.block_windows
        windows = max(
            sum(block_windows(len(clip.frames), block) for _, clip in p.audio) for p in prompts
        )
        length += -length % _BUCKET
        windows = max(windows, block)
        return stack_rows([pack_row([p], length, windows, block) for p in prompts])

    def _message(self, batch: Batch, modality: str, sampling: Sampling, seed: int):
        guided = sampling.cfg != 1.0
        max_rows = sampling.max_rows
        slots = batch.tokens.shape[1] + 1 + max_rows
        _, cache = self._prefill(self._params, batch, slots=slots, guided=guided)
        positions = (batch.segment_ids > 0).sum(axis=1).astype(np.int32)
        rows, lengths, ends = self._decode(
            self._params,
            cache=cache,
            positions=positions,
            key=jax.random.key(seed),
            temperature=jnp.float32(sampling.temperature),
            cfg=jnp.float32(sampling.cfg),
            min_rows=jnp.int32(sampling.min_rows),
            modality=modality,
            max_rows=max_rows,
            top_k=sampling.top_k,
            guided=guided,
        )
        return np.asarray(rows), np.asarray(lengths), np.asarray(ends)

    def _model(self, params) -> Bagpiper:
        return nnx.merge(self._graph, params)

    @functools.cached_property
    def _marker_logits(self):
        def logits(params, hidden):
            return self._model(params).logits(hidden, 0, vocab_lib.NUM_SPECIAL)[0]

        return jax.jit(logits)

    def _prefill_fn(self, params, batch: Batch, *, slots: int, guided: bool):
        """Hidden state of each prompt's last row [B, D], and the cache [2B rows if guided]."""
        model = self._model(params)
        features = model.encode_audio(batch.mel, batch.mel_frames)
        x = model.embed(batch.tokens, batch.audio_index, features)
        positions, segments = batch.positions, batch.segment_ids
        count = len(x)
        if guided:  # the unconditional branch: a context of the same length made of zeros
            x = jnp.concatenate([x, model.embed(jnp.zeros_like(batch.tokens))])
            positions, segments = jnp.tile(positions, (2, 1)), jnp.tile(segments, (2, 1))
        cache = KVCache.empty(self.config.decoder, len(x), slots, x.dtype)
        hidden, cache = model.decode(x, positions, segments, cache)
        last = (batch.segment_ids > 0).sum(axis=1) - 1
        return jnp.take_along_axis(hidden[:count], last[:, None, None], axis=1)[:, 0], cache

    def _decode_fn(
        self,
        params,
        *,
        cache: KVCache,
        positions,
        key,
        temperature,
        cfg,
        min_rows,
        modality: str,
        max_rows: int,
        top_k: int,
        guided: bool,
    ):
        """Rows [B, max_rows, K], their number [B], the end token [B] (−1 for none)."""
        model = self._model(params)
        vocab = self.config.vocab
        count, streams = len(positions), vocab.num_streams
        ends = jnp.array([vocab_lib.EOS, vocab_lib.EOT])

        def logits_of(hidden):
            logits = (text_logits if modality == "text" else audio_logits)(model, hidden)
            if not guided:
                return logits
            cond, uncond = logits[:count], logits[count:]
            mixed = cfg * cond + (1 - cfg) * uncond
            return jnp.where(jnp.isfinite(cond), mixed, -jnp.inf)

        def next_text(hidden, key, step):
            logits = logits_of(hidden)
            early = jnp.isin(jnp.arange(logits.shape[-1]), ends) & (step < min_rows)
            token = choose(jnp.where(early, -jnp.inf, logits), key, temperature, top_k)
            rows = jnp.zeros((count, streams), jnp.int32).at[:, 0].set(token)
            return rows, jnp.where(jnp.isin(token, ends), token, -1)

        def next_audio(hidden, key, step, frames):
            """`frames`: of the whole message, −1 while stream 0 goes on."""
            size = vocab.stream_size
            kinds = np.repeat([0, 1, 2], [1, size - 1, 2])  # pad, codes, end tokens
            allowed = delay_mask(step, frames, streams, min_rows, max_rows)[..., kinds]
            logits = jnp.where(allowed, logits_of(hidden), -jnp.inf)
            index = choose(logits, key, temperature, top_k)
            first = index[:, 0]
            stops = (frames < 0) & ((first == 0) | (first >= size))
            frames = jnp.where(stops, step, frames)
            done = (first >= size) & (frames >= 0) & (step >= frames + streams - 1)
            end = jnp.where(done, ends[jnp.clip(first - size, 0, 1)], -1)
            return vocab.stream_pads + jnp.where(index < size, index, 0), end, frames

        def feed(row, cache, position):
            """One more row into the cache; hidden states [B or 2B, D]."""
            if guided:
                row, position = jnp.tile(row, (2, 1)), jnp.tile(position, 2)
            return feed_embedded(model.embed(row[:, None]), cache, position)

        def feed_embedded(x, cache, position):
            segments = jnp.ones((len(x), 1), jnp.int32)
            hidden, cache = model.decode(x, position[:, None], segments, cache)
            return hidden[:, 0], cache

        def start(cache):
            """The modality marker, which the unconditional branch sees as zeros."""
            marker = jnp.zeros((count, 1, streams), jnp.int32)
            marked = marker.at[:, 0, 0].set(vocab_lib.MODALITIES[modality])
            rows = jnp.concatenate([marked, marker]) if guided else marked
            position = jnp.tile(positions, 2) if guided else positions
            return feed_embedded(model.embed(rows), cache, position)

        def body(carry):
            step, hidden, cache, rows, lengths, frames, ended = carry
            step_key = jax.random.fold_in(key, step)
            if modality == "text":
                row, end = next_text(hidden, step_key, step)
            else:
                row, end, frames = next_audio(hidden, step_key, step, frames)
            running = ended == 0
            ended = jnp.where(running & (end >= 0), end, ended)
            running = running & (end < 0)
            rows = rows.at[:, step].set(jnp.where(running[:, None], row, 0))
            lengths = lengths + running
            hidden, cache = feed(row, cache, positions + 1 + step)
            return step + 1, hidden, cache, rows, lengths, frames, ended

        def unfinished(carry):
            return (carry[0] < max_rows) & jnp.any(carry[-1] == 0)

        hidden, cache = start(cache)
        rows = jnp.zeros((count, max_rows, streams), jnp.int32)
        zeros = jnp.zeros(count, jnp.int32)
        carry = (jnp.int32(0), hidden, cache, rows, zeros, zeros - 1, zeros)
        _, _, _, rows, lengths, _, ended = jax.lax.while_loop(unfinished, body, carry)
        return rows, lengths, jnp.where(ended == 0, -1, ended)
