"""Stage `caption`: a recording → a rich caption, as structure and as prose."""

from __future__ import annotations

import asyncio
import io
import os

import numpy as np

from bagpiper_jax.audio import MIN_SECONDS, open_sound
from bagpiper_jax.simulation.client import Unusable
from bagpiper_jax.simulation.config import AudioConfig, ModelConfig
from bagpiper_jax.simulation.prompts import CAPTION
from bagpiper_jax.simulation.rich_caption import RichCaption, parse_caption, prose
from bagpiper_jax.simulation.schema import query
from bagpiper_jax.simulation.stage import Context, Row, Stage, Unit, account, with_provenance


def as_wav(path: str, config: AudioConfig) -> tuple[bytes, float]:
    """A recording as a WAV file of 16 bits, and its seconds.

    Raises:
      Unusable: missing, damaged, empty or too long.
    """
    import soundfile

    name = os.path.basename(path)
    try:
        with open_sound(path) as file:
            rate = file.samplerate
            if rate <= 0:
                raise Unusable(f"{name} states a sample rate of {rate} Hz")
            # an enormous header must not cost its size in memory
            wav = file.read(int(rate * config.max_seconds) + 1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as e:
        raise Unusable(f"{name} cannot be read as audio: {_without_path(e, path)}") from e
    seconds = len(wav) / rate
    if seconds < MIN_SECONDS:
        raise Unusable(f"{name} lasts {seconds:.3f} s: at least {MIN_SECONDS} s are needed")
    if seconds > config.max_seconds:
        raise Unusable(f"{name} is longer than {config.max_seconds:g} s: cut it first")
    if not np.isfinite(wav).all():
        raise Unusable(f"{name} holds samples that are not finite")
    if config.mono:
        wav = wav[:, :1]
    if config.sample_rate and config.sample_rate != rate:
        import librosa

        wav = librosa.resample(wav, orig_sr=rate, target_sr=config.sample_rate, axis=0)
        rate = config.sample_rate
    out = io.BytesIO()
    soundfile.write(out, np.clip(wav, -1, 1), rate, format="WAV", subtype="PCM_16")
    return out.getvalue(), seconds


def _without_path(error: Exception, path: str) -> str:
    return str(error).replace(path, os.path.basename(path))


async def read_audio(context: Context, row: Row) -> tuple[bytes, float]:
    """The recording of a row, read in a thread; see `as_wav`."""
    return await asyncio.to_thread(as_wav, context.audio_path(row), context.settings.audio)


async def _caption(context: Context, unit: Unit) -> Row:
    client = context.client
    wav, seconds = await read_audio(context, unit.row)
    asked = query(
        client.model, CAPTION, RichCaption, audio=wav, audio_seconds=seconds,
        seconds=f"{seconds:.2f}",
    )  # fmt: skip
    accepted = await client.ask(asked, lambda text: parse_caption(text, seconds))
    caption = accepted.value
    row = unit.row | {
        "seconds": round(seconds, 3),
        "language": caption.language,
        "caption": prose(caption, seconds),
        "rich": caption.model_dump(),
    }
    return with_provenance(row, CAPTION_STAGE.name, unit, account(client, CAPTION, accepted))


def _model(settings) -> ModelConfig:
    return settings.captioner


CAPTION_STAGE = Stage(
    name="caption",
    model=_model,
    basis=lambda settings: [CAPTION.sha256, vars(settings.audio)],
    units=lambda row, settings: [Unit(row["id"], row)],
    work=_caption,
)
