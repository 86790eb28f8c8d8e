"""One item → its records, ready to be written, or the reason why there are none."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.audio import SAMPLE_RATE
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.records import Clip, Record, sizes
from bagpiper_jax.log_mel import MelWindows, mel_windows
from bagpiper_jax.preparation.decode import Rejected, decode
from bagpiper_jax.preparation.item import Item
from bagpiper_jax.preparation.options import Options, Tools
from bagpiper_jax.preparation.pieces import Piece, check_level, cut

DOMAINS = ("speech", "music", "sound", "mixed")


@dataclasses.dataclass(frozen=True)
class Made:
    """A record as it is written, and what is known of it.

    Attributes:
      data: the record's bytes.
      digest: 16 bytes of SHA-256 of its audio and text.
      sizes: (rows, windows) by task that it can serve.
      seconds: of its audio.
      loudness: of its clips, LUFS.
      domain, language, licence: to count by.
    """

    data: bytes
    digest: bytes
    sizes: dict[str, tuple[int, int]]
    seconds: float
    loudness: tuple[float, ...]
    domain: str
    language: str
    licence: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What became of an item that is not quarantined as a whole.

    Attributes:
      records: at least one.
      dropped: reasons, by kind, of pieces of a long recording that are left out.
      cuts: (in a pause, in the midst of sound) where it was cut.
      seconds: of the audio as found.
    """

    records: tuple[Made, ...]
    dropped: tuple[Rejected, ...] = ()
    cuts: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def prepare_item(
    item: Item,
    prefix: str,
    options: Options,
    tools: Tools,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Prepared:
    """Decodes, checks, cuts and encodes an item.

    A caption goes with a whole recording only, and so does a dialogue. Longer recordings are cut
    into pieces without a text.

    Args:
      item: to prepare.
      prefix: of the records' ids.
      options: of the preparation.
      tools: tokenizer and codec.
      progress: called with seconds of audio as they are done.

    Raises:
      Rejected: it goes to quarantine.
    """
    _check_text(item)
    if item.messages or not item.audios:
        return _prepare_whole(item, prefix, options, tools, progress)
    if len(item.audios) > 1:
        raise Rejected("entry", "several recordings go with a dialogue only")
    pieces = cut(decode(item.audios[0], options.max_hours))
    first, second = next(pieces), next(pieces, None)
    if second is None:
        made = _make(item, prefix + item.id, (first,), options, tools)
        progress(first.seconds)
        return Prepared((made,), seconds=first.seconds)
    if item.caption and not options.captioned_pieces:
        raise Rejected("too long", "it lasts over 30 s, and the caption tells of the whole")
    plain = dataclasses.replace(item, caption="")
    records, dropped, in_pause, seconds = [], [], [], 0.0
    # one at a time: hours of samples are never in memory
    for number, piece in enumerate(itertools.chain((first, second), pieces)):
        try:
            name = f"{prefix}{item.id}/{number:04d}"
            records.append(_make(plain, name, (piece,), options, tools))
        except Rejected as e:
            dropped.append(e)
        in_pause.append(piece.in_pause)
        seconds += piece.seconds
        progress(piece.seconds)
    if not records:
        raise dropped[0]
    cuts = sum(in_pause[:-1]), len(in_pause) - 1 - sum(in_pause[:-1])
    return Prepared(tuple(records), tuple(dropped), cuts, seconds)


def _prepare_whole(item: Item, prefix: str, options, tools: Tools, progress) -> Prepared:
    """A dialogue, or a text alone."""
    wholes = []
    for audio in item.audios:
        pieces = cut(decode(audio, options.max_hours))
        wholes.append(next(pieces))
        if next(pieces, None) is not None:
            raise Rejected("too long", "a recording of a dialogue lasts over 30 s")
        progress(wholes[-1].seconds)
    made = _make(item, prefix + item.id, tuple(wholes), options, tools)
    return Prepared((made,), seconds=made.seconds)


def _check_text(item: Item) -> None:
    """Rejects an item whose text or messages cannot be laid out."""
    if item.domain not in DOMAINS:
        raise Rejected("entry", f"domain {item.domain!r} is none of {', '.join(DOMAINS)}")
    if not (item.audios or item.caption.strip() or item.messages):
        raise Rejected("entry", "it has neither audio nor text")
    if item.messages and item.caption:
        raise Rejected("entry", "it has both a caption and messages")
    texts = [item.id, item.caption]
    for role, modality, content in item.messages:
        if role not in vocab_lib.ROLES or modality not in ("text", "audio"):
            raise Rejected("entry", f"a message is of {role!r} and {modality!r}")
        if not isinstance(content, str if modality == "text" else int):
            raise Rejected("entry", f"a message of {modality} holds {type(content).__name__}")
        if modality == "audio" and not 0 <= content < len(item.audios):
            raise Rejected("entry", f"a message names recording {content}, which is not there")
        texts.append(content if modality == "text" else "")
    if item.messages and all(role != "assistant" for role, _, _ in item.messages):
        raise Rejected("entry", "the dialogue has no message of the assistant")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as e:
        raise Rejected("entry", "its text is not valid Unicode") from e


def _make(item: Item, name: str, pieces: tuple[Piece, ...], options, tools: Tools) -> Made:
    loudness = tuple(check_level(piece) for piece in pieces)
    # whether each recording is spoken by the assistant, and whether it is listened to
    spoken, heard = [not item.messages] * len(pieces), [not item.messages] * len(pieces)
    for role, modality, content in item.messages:
        if modality == "audio":
            (spoken if role == "assistant" else heard)[content] = True
    if item.messages and any(spoken) and tools.codec is None:
        raise Rejected("entry", "the assistant speaks, and no codes are computed")
    if item.messages and any(heard) and options.keep == "neither":
        raise Rejected("entry", "a recording is listened to, and neither audio nor mel is kept")
    clips = tuple(map(_clip, pieces, spoken, heard, [options] * len(pieces), [tools] * len(pieces)))
    done = {
        "start": [round(piece.start / SAMPLE_RATE, 4) for piece in pieces],
        "lufs": [round(value, 2) for value in loudness],
    }
    record = Record(
        id=name,
        caption=item.caption if item.caption.strip() else "",
        messages=item.messages,
        clips=clips,
        domain=item.domain,
        language=item.language,
        licence=item.licence,
        provenance={**item.provenance, "prepared": done} if pieces else item.provenance,
    )
    try:
        data = record.to_bytes()
    except (TypeError, ValueError, OverflowError) as e:
        raise Rejected("entry", f"its provenance cannot be kept: {e}") from e
    try:
        by_task = {t: sizes(record, t, tools.config, tools.tokenizer) for t in record.tasks()}
    except UserError as e:
        raise Rejected("entry", str(e)) from e
    return Made(
        data=data,
        digest=content_digest(item, pieces),
        sizes=by_task,
        seconds=sum(piece.seconds for piece in pieces),
        loudness=loudness,
        domain=item.domain,
        language=item.language,
        licence=item.licence,
    )


def _clip(piece: Piece, spoken: bool, heard: bool, options: Options, tools: Tools) -> Clip:
    wav = piece.wav()
    codes = mel = audio = None
    if spoken and tools.codec is not None:
        codes = encode(tools.codec, wav)
    if heard and options.keep in ("audio", "both"):
        audio = to_flac(piece.pcm)
    if heard and options.keep in ("mel", "both"):
        windows = mel_windows(wav)
        mel = MelWindows(windows.mel.astype(np.float16), windows.frames)
    return Clip(len(piece.pcm), codes, mel, audio)


def encode(codec, wav: np.ndarray) -> np.ndarray:
    """Codes of a clip at 16 kHz, uint16 [T, K]."""
    if codec.sample_rate != SAMPLE_RATE:
        import soxr

        wav = soxr.resample(wav, SAMPLE_RATE, codec.sample_rate, quality="HQ")
    return np.asarray(codec.encode(wav)).astype(np.uint16)


def to_flac(pcm: np.ndarray) -> bytes:
    """int16 [S] at 16 kHz → a FLAC file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def content_digest(item: Item, pieces: tuple[Piece, ...]) -> bytes:
    """16 bytes of SHA-256 of an item's text and of the audio as it is kept."""
    digest = hashlib.sha256()
    for part in _parts(item, pieces):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()[:16]


def _parts(item: Item, pieces: tuple[Piece, ...]) -> Iterator[bytes]:
    yield item.caption.encode()
    for message in item.messages:
        yield "\0".join(map(str, message)).encode()
    for piece in pieces:
        yield piece.pcm.astype("<i2").tobytes()
