"""What of speech survives the codec: word error rate and ViSQOL of spoken prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr
from bagpiper_jax.evaluation.text_metrics import (
    bootstrap_ratio,
    count_errors,
    normalize,
    plain,
    word_error_rate,
)
from bagpiper_jax.input_pipeline.scenes import Clip, Corpus
from bagpiper_jax.modeling.codec import Codec

MIN_WORDS = 4  # shorter prompts give Whisper no context, so its own slips would be most of the rate


def prompts(corpus: Corpus, limit: int) -> list[Clip]:
    """Recorded (not synthetic) phrases of at least MIN_WORDS words, evenly spread over the table.

    Raises:
      UserError: the corpus has none.
    """
    clips = [
        clip
        for clip in corpus.clips.values()
        if clip.kind == "phrase" and not clip.synthetic and len(clip.text.split()) >= MIN_WORDS
    ]
    if not clips:
        raise UserError(f"the corpus has no recorded phrase of {MIN_WORDS} words or more")
    picks = np.unique(np.linspace(0, len(clips) - 1, min(limit, len(clips))).astype(int))
    return [clips[i] for i in picks]


def reconstruct(codec: Codec, wav: np.ndarray) -> np.ndarray:
    """A clip through the codec and back: float32 [S] → float32 [S]."""
    return codec.decode(codec.encode(wav))[: len(wav)]


def codec_probe(
    codec: Codec, corpus: Corpus, whisper: asr.Whisper, *, count: int = 60, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Word error rate and ViSQOL of prompts before and after the codec.

    Args:
      count: prompts at most.
      seed: of the intervals.

    Returns:
      the figures, and one item per prompt.
    """
    clips = prompts(corpus, count)
    wavs = [corpus.audio[clip.id].astype(np.float32) / 32768 for clip in clips]
    copies = [reconstruct(codec, wav) for wav in tqdm(wavs, desc="codec: reconstruct", unit="clip")]
    heard = list(_bar(whisper.transcribe_all([*wavs, *copies]), 2 * len(wavs), "codec: Whisper"))
    quality = list(_bar(asr.visqol(wavs, copies), len(wavs), "codec: ViSQOL"))
    items = [
        {
            "probe": "codec",
            "key": clip.id,
            "truth": clip.text,
            "original": before,
            "reconstruction": after,
            "visqol": round(score, 4),
            "wer": {
                "original": count_errors(normalize(clip.text), normalize(before)),
                "reconstruction": count_errors(normalize(clip.text), normalize(after)),
            },
            "wer_raw": {
                "original": count_errors(plain(clip.text), plain(before)),
                "reconstruction": count_errors(plain(clip.text), plain(after)),
            },
        }
        for clip, before, after, score in zip(
            clips, heard[: len(wavs)], heard[len(wavs) :], quality, strict=True
        )
    ]
    return summary(items, seed), items


def summary(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The codec's figures from its items."""
    out: dict[str, Any] = {
        name: {
            side: word_error_rate([item[name][side] for item in items], seed=seed)
            for side in ("original", "reconstruction")
        }
        for name in ("wer", "wer_raw")
    }
    scores = [item["visqol"] for item in items]
    return out | {"visqol": bootstrap_ratio(scores, np.ones(len(scores)), seed=seed)}


def _bar(iterator, total: int, name: str):
    return tqdm(iterator, total=total, desc=name, unit="clip")
