"""The clips of the mini corpus: the table, the decoded audio, and the pools to draw from."""

from __future__ import annotations

import csv
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bagpiper_jax.errors import UserError

SAMPLE_RATE = 16_000
COLUMNS = ("id kind label text voice split synthetic seconds source title author licence").split()
KINDS = ("digit", "letter", "phrase", "sound", "music")

# The noun phrase a caption uses for a voice. Voices of one kind sound alike to a listener.
VOICE_KINDS = {
    "allison": "a woman",
    "slt": "a synthetic female voice",
    "rms": "a synthetic male voice",
    "awb": "a synthetic male voice",
    "kal16": "a synthetic male voice",
    "hibari": "a bright synthetic voice",
}

OTHER_VOICES = ("a speaker", "a synthetic voice")
ANY_VOICE_KIND = tuple(dict.fromkeys((*VOICE_KINDS.values(), *OTHER_VOICES)))

# Clips are brought to one loudness, so that a scene's gains mean the same for all of them.
LEVEL_DB, PEAK = -24.0, 0.5
FRAME = SAMPLE_RATE // 100
TRIM_DB, TRIM_PAD = -45.0, 3 * FRAME

MIN_UNITS = 5  # digits, or letters, that a voice needs to spell with
MAX_PHRASE_SECONDS, MAX_PHRASE_WORDS = 4.0, 8


@dataclass(frozen=True, slots=True)
class Clip:
    """A row of the table; `num_samples` counts the samples at 16 kHz after trimming."""

    id: str
    kind: str
    label: str
    text: str
    voice: str
    split: str
    synthetic: bool
    seconds: float
    source: str
    title: str
    author: str
    licence: str
    num_samples: int


def voice_kind(voice: str, synthetic: bool) -> str:
    """The noun phrase for a voice: "a woman", "a synthetic male voice"."""
    return VOICE_KINDS.get(voice, OTHER_VOICES[synthetic])


def trim_and_level(wav: np.ndarray, trim: bool) -> np.ndarray:
    """Cuts silence off both ends and sets the loudness. float32 [S] → int16 [S'].

    Loudness is the root mean square over the frames within 30 dB of the loudest one, set to
    LEVEL_DB of full scale unless the peak would pass PEAK.
    """
    frames = wav[: len(wav) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.mean(np.square(frames), axis=1) if len(frames) else np.zeros(0)
    if not len(power) or power.max() <= 0:
        return np.zeros(len(wav), np.int16)
    if trim:
        active = np.flatnonzero(power > power.max() * 10 ** (TRIM_DB / 10))
        start = max(0, active[0] * FRAME - TRIM_PAD)
        wav = wav[start : (active[-1] + 1) * FRAME + TRIM_PAD]
    level = np.sqrt(power[power > power.max() * 1e-3].mean())
    gain = min(10 ** (LEVEL_DB / 20) / level, PEAK / np.abs(wav).max())
    return np.round(wav * (gain * 32767)).astype(np.int16)


def _decode(directory: Path, row: dict[str, str]) -> np.ndarray:
    import soundfile  # here, since loading it costs more than all the rest of this package

    path = directory / "audio" / f"{row['id']}.ogg"
    if not path.is_file():
        raise UserError(
            f"{path} is missing though clips.tsv lists it; rebuild the corpus with "
            "data/build_mini.py"
        )
    try:
        wav, rate = soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path} cannot be decoded ({error.error_string}); rebuild the corpus "
            "with data/build_mini.py"
        ) from error
    if rate != SAMPLE_RATE or wav.ndim != 1:
        raise UserError(f"{path} is not {SAMPLE_RATE} Hz mono; convert it")
    return trim_and_level(wav, trim=row["kind"] != "music")


class Corpus:
    """Clips, their audio (int16 in memory), and the pools that scenes are drawn from.

    A pool is keyed by the table's split, "train" or "test". Attributes:
    clips: id → Clip; audio: id → int16 [S];
    units[pool, voice, "digit" | "letter"]: spoken token → ids of its takes;
    phrases[pool, voice]: ids of the phrases short enough for a scene;
    takes[pool, "sound" | "music", label]: ids;
    labels[pool, "sound" | "music"]: labels in order of the table;
    spellers[pool, "digits" | "letters" | "mixed"], phrase_voices[pool]: voices that can say it;
    voices[pool]: all of them; a voice with a clip in "train" is not in "test".
    """

    def __init__(self, clips: list[Clip], audio: dict[str, np.ndarray]):
        self.clips = {clip.id: clip for clip in clips}
        self.audio = audio
        units: dict = defaultdict(lambda: defaultdict(list))
        phrases: dict = defaultdict(list)
        takes: dict = defaultdict(list)
        train_voices = {c.voice for c in clips if c.voice and c.split == "train"}
        self.voice_kinds: dict[str, str] = {}
        for clip in clips:
            if clip.voice:
                self.voice_kinds[clip.voice] = voice_kind(clip.voice, clip.synthetic)
                if clip.split == "test" and clip.voice in train_voices:
                    continue  # held out, but no scene needs a known voice's held-out take
            if clip.kind in ("digit", "letter"):
                units[clip.split, clip.voice, clip.kind][clip.text].append(clip.id)
            elif clip.kind == "phrase":
                short = clip.num_samples <= MAX_PHRASE_SECONDS * SAMPLE_RATE
                if short and len(clip.text.split()) <= MAX_PHRASE_WORDS:
                    phrases[clip.split, clip.voice].append(clip.id)
            else:
                takes[clip.split, clip.kind, clip.label].append(clip.id)
        self.units = {key: {t: tuple(ids) for t, ids in d.items()} for key, d in units.items()}
        self.phrases = {key: tuple(ids) for key, ids in phrases.items()}
        self.takes = {key: tuple(ids) for key, ids in takes.items()}
        self.labels = {
            (pool, kind): tuple(label for p, k, label in takes if (p, k) == (pool, kind))
            for pool in ("train", "test")
            for kind in ("sound", "music")
        }
        self.voices = {
            pool: tuple(
                dict.fromkeys(key[1] for key in [*self.units, *self.phrases] if key[0] == pool)
            )
            for pool in ("train", "test")
        }

        self.spellers = {
            (pool, kind): self._spellers(pool, kind)
            for pool in ("train", "test")
            for kind in ("digits", "letters", "mixed")
        }
        self.phrase_voices = {
            pool: tuple(voice for p, voice in self.phrases if p == pool)
            for pool in ("train", "test")
        }

    def _spellers(self, pool: str, kind: str) -> tuple[str, ...]:
        needs = ("digit", "letter") if kind == "mixed" else (kind[:-1],)
        return tuple(
            voice
            for voice in self.voices[pool]
            if all(len(self.units.get((pool, voice, n), ())) >= MIN_UNITS for n in needs)
        )

    @property
    def event_labels(self) -> tuple[str, ...]:
        """Every label of a sound or a piece of music, sorted: what `parse_caption` looks for."""
        return tuple(sorted({c.label for c in self.clips.values() if c.kind in KINDS[3:]}))

    @classmethod
    def load(cls, directory: str | Path) -> Corpus:
        """Reads `clips.tsv` and decodes `audio/<id>.ogg` (16 kHz mono) of a corpus directory.

        Raises UserError for a missing directory, table, column or file, for a value outside the
        table's terms, and for audio that is not 16 kHz mono.
        """
        directory = Path(directory)
        table = directory / "clips.tsv"
        if not table.is_file():
            raise UserError(
                f"no corpus at {directory}: it has no clips.tsv; "
                "pass the directory that data/build_mini.py wrote"
            )
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{table} lacks the column(s) {', '.join(missing)}; rebuild it "
                    "with data/build_mini.py"
                )
            rows = list(reader)
        for row in rows:
            if row["kind"] not in KINDS or row["split"] not in ("train", "test"):
                raise UserError(
                    f"{table}: clip {row['id']} has kind {row['kind']!r} and split "
                    f"{row['split']!r}; kinds are {', '.join(KINDS)}, splits are "
                    "train, test"
                )
        with ThreadPoolExecutor(4) as pool:  # decoding releases the interpreter's lock
            waves = list(pool.map(lambda row: _decode(directory, row), rows))
        audio = {row["id"]: wav for row, wav in zip(rows, waves)}
        clips = []
        for row in rows:
            fields = {name: row[name] for name in COLUMNS}
            fields |= {"synthetic": row["synthetic"] == "1", "seconds": float(row["seconds"])}
            clips.append(Clip(**fields, num_samples=len(audio[row["id"]])))
        corpus = cls(clips, audio)
        if not corpus.labels["train", "sound"]:
            raise UserError(f"{table} has no sound with split train; scenes need at least one")
        if not corpus.spellers["train", "digits"] and not corpus.spellers["train", "letters"]:
            raise UserError(
                f"{table} has no voice with {MIN_UNITS} digits or letters of split "
                "train; scenes need at least one"
            )
        return corpus
