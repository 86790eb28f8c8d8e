"""Builds data/mini, the small corpus of real recordings and synthetic voices, from packages.

    python data/build_mini.py [--out DIR] [--work DIR]

Needs apt-get and dpkg (Debian 12 package lists), and the Python packages numpy, scipy,
soundfile, av (decodes G.722) and hibari-tts. Flite runs from its unpacked package.
Every clip becomes 16 kHz mono Ogg/Opus; the same packages give the same files. The corpus that
stands in --out is replaced only by a whole new one.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.metadata
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

try:
    import mini_signal as dsp
    import numpy as np
    import soundfile as sf
    from hibari import Hibari
except ImportError as err:
    sys.exit(f"build_mini: {err}; install numpy scipy soundfile av hibari-tts")

import mini_tables as tables

COLUMNS = "id kind label text voice split synthetic seconds source title author licence".split()
OPUS_LEVEL = 0.9  # about 38 kbit/s with libsndfile
MUSIC_DBFS = -20.0
SOUND_PEAK = 0.5
MAX_PHRASE_SECONDS = 3.0
MAX_PHRASE_WORDS = 8
# first word after "Creative Commons" in a credit line
OPENSFX_LICENCES = {
    "Zero": "CC0-1.0",
    "Attribution": "CC-BY-3.0",
    "Attribution-ShareAlike": "CC-BY-SA-3.0",
}


class BuildError(Exception):
    """A tool, package or file the build needs is missing or not as expected."""


def unpack_packages(work: Path) -> Path:
    """Downloads and unpacks every package of `tables.PACKAGES`; returns the unpacked root."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} not found; this build runs on Debian")
    debs, root = work / "deb", work / "root"
    debs.mkdir(parents=True, exist_ok=True)
    for name, version in tables.PACKAGES.items():
        if not list(debs.glob(f"{name}_{version}_*.deb")):
            done = subprocess.run(
                ["apt-get", "download", f"{name}={version}"],
                cwd=debs,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise BuildError(f"apt-get download {name}={version}: {last}")
        deb = next(debs.glob(f"{name}_{version}_*.deb"))
        subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
    return root


def source(package: str, inside: str) -> str:
    """Value of the source column: package, version and path inside it."""
    return f"{package} {tables.PACKAGES[package]}: {inside}"


class Corpus:
    """Writes clips and collects their rows."""

    def __init__(self, out: Path):
        self.out = out
        self.rows: list[dict[str, str]] = []
        shutil.rmtree(out / "audio", ignore_errors=True)
        (out / "audio").mkdir(parents=True)

    def add(self, clip_id: str, wav: np.ndarray, **row: object) -> None:
        buffer = io.BytesIO()
        sf.write(buffer, wav, dsp.RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
        data = dsp.with_serial(buffer.getvalue(), zlib.crc32(clip_id.encode()))
        decoded, rate = sf.read(io.BytesIO(data), dtype="float32")
        if rate != dsp.RATE or len(decoded) != len(wav):
            raise BuildError(f"{clip_id}: Opus gave {len(decoded)} samples for {len(wav)}")
        (self.out / "audio" / f"{clip_id}.ogg").write_bytes(data)
        row |= {"id": clip_id, "seconds": f"{len(decoded) / dsp.RATE:.3f}"}
        self.rows.append({c: str(row.get(c, "")) for c in COLUMNS})

    def add_speech(self, voice: str, kind: str, text: str, wav: np.ndarray, **row) -> None:
        clip_id = f"{voice}-{kind}-{slug(text)}"
        self.add(clip_id, wav, kind=kind, label=text, text=text, voice=voice, **row)

    def write_table(self) -> None:
        with open(self.out / "clips.tsv", "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(
                f,
                COLUMNS,
                delimiter="\t",
                lineterminator="\n",
                quoting=csv.QUOTE_NONE,
                quotechar=None,
            )
            writer.writeheader()
            writer.writerows(sorted(self.rows, key=lambda r: r["id"]))

    def write_notices(self) -> None:
        """Writes LICENSES.md: per package what was taken and changed, per title who made it."""
        lines = [tables.NOTICE_HEAD]
        for package, (contents, changes) in tables.NOTICES.items():
            rows = [r for r in self.rows if r["source"].startswith(f"{package} ")]
            version = rows[0]["source"].split(":")[0].split(" ")[1]
            seconds = sum(float(r["seconds"]) for r in rows)
            lines += [
                f"## {package} {version}",
                "",
                contents,
                "",
                f"{len(rows)} clips, {seconds:.0f} s. Changed: {changes}",
                "",
            ]
            credits = {(r["title"], r["author"], r["licence"]) for r in rows}
            if len({author for _, author, _ in credits}) == 1:
                credits = {("all clips", *credit[1:]) for credit in credits}
            lines += ["| title | author | licence |", "|---|---|---|"]
            lines += [f"| {' | '.join(credit)} |" for credit in sorted(credits)] + [""]
        text = "\n".join(lines).rstrip() + "\n"
        (self.out / "LICENSES.md").write_text(text, encoding="utf-8")


def slug(text: str) -> str:
    """File name part made of a label or text."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def plain_words(text: str) -> str | None:
    """Lower-case words without punctuation; None where the text has marks that are not words."""
    if re.search(r"[\[\]()<>*#@&]", text):
        return None
    text = re.sub(r"\b(\d)\b", lambda m: tables.DIGITS[int(m[1])], text.lower())
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.replace("re-", "re"))
    text = re.sub(r"[.,!?:;]|(?<!\w)-|-(?!\w)", " ", text)
    text = " ".join(text.split())
    return text if re.fullmatch(r"[a-z' ]+", text) else None


def add_asterisk_speech(corpus: Corpus, root: Path) -> None:
    """Adds the recorded digits, letters and short prompts; of equal texts the first."""
    package = "asterisk-core-sounds-en-g722"
    folder = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    listing = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    lines = gzip.decompress(listing.read_bytes()).decode("utf-8").splitlines()
    prompts = dict(ln.split(":", 1) for ln in lines if ":" in ln and not ln.startswith(";"))
    seen = set()
    for name, text in sorted(prompts.items()):
        path, words = folder / f"{name}.g722", plain_words(text)
        if name in tables.SKIP_PROMPTS or words is None or not path.exists():
            continue
        kind = "phrase"
        if re.fullmatch(r"digits/\d", name):
            kind = "digit"
        elif re.fullmatch(r"letters/[a-z]", name):
            kind, words = "letter", words.upper()
        if (kind, words) in seen or len(words.split()) > MAX_PHRASE_WORDS:
            continue
        wav = dsp.speech(dsp.read_g722(path))
        if len(wav) > MAX_PHRASE_SECONDS * dsp.RATE:
            continue
        seen.add((kind, words))
        corpus.add_speech(
            "allison",
            kind,
            words,
            wav,
            split="train",
            synthetic=0,
            source=source(package, f"en_US_f_Allison/{name}.g722"),
            title=f"Asterisk core sounds: {name}",
            author="Allison Smith",
            licence="CC-BY-SA-3.0",
        )
    missing = [p for p in tables.SHARED_PHRASES if ("phrase", p) not in seen]
    if missing:
        raise BuildError(f"no recorded phrase for: {', '.join(missing)}")


def spoken_items() -> list[tuple[str, str]]:
    """(kind, text) of everything each synthetic voice says."""
    return (
        [("digit", d) for d in tables.DIGITS]
        + [("letter", c) for c in tables.LETTERS]
        + [("phrase", p) for p in tables.SHARED_PHRASES]
    )


def add_flite(corpus: Corpus, root: Path, work: Path) -> None:
    """Adds the Flite voices; raises BuildError where flite fails."""
    library = next(root.rglob("libflite.so.1"), None)
    if library is None:
        raise BuildError("libflite.so.1 not found in the libflite1 package")
    env = os.environ | {"LD_LIBRARY_PATH": str(library.parent)}
    temp = work / "flite.wav"
    for voice, (author, split) in tables.FLITE_VOICES.items():
        for kind, text in spoken_items():
            command = [root / "usr/bin/flite", "-voice", voice, "-t", text, "-o", temp]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                raise BuildError(f"flite failed on {text!r}: {done.stderr.strip()[:200]}")
            corpus.add_speech(
                voice,
                kind,
                text,
                dsp.speech(dsp.read_any(temp)),
                split=split,
                synthetic=1,
                source=source("flite", f"voice {voice}"),
                title=f"Flite voice {voice}",
                author=author,
                licence="MIT-Festival",
            )
    temp.unlink()


def add_hibari(corpus: Corpus) -> None:
    """Adds the hibari voice."""
    tts = Hibari()
    for kind, text in spoken_items():
        # A lone "a" is read as the article; with a full stop a letter is read by its name.
        wav = tts(f"{text}." if kind == "letter" else text, seed=0)
        corpus.add_speech(
            "hibari",
            kind,
            text,
            dsp.speech(dsp.to_rate(wav.astype(np.float64), tts.sample_rate)),
            split="train",
            synthetic=1,
            source=f"hibari-tts {tables.HIBARI_VERSION}: voice heart",
            title="hibari voice heart",
            author="Maureese Williams",
            licence="Apache-2.0",
        )


def sonic_pi_credits(root: Path) -> dict[str, str]:
    """Author of each sample that the package's copyright file lists by name as CC0."""
    text = (root / "usr/share/doc/sonic-pi-samples/copyright").read_text(encoding="utf-8")
    found = re.findall(
        r"^Files: etc/samples/(\w+)\.flac\nCopyright: (?:\d{4} )?(.+?)\n(?:Source: .+\n)?"
        r"License: CC0$",
        text,
        re.M,
    )
    return {name: re.sub(r" *<.*?>", "", author) for name, author in found}


def read_opensfx(root: Path) -> list[tuple[np.ndarray, dict[str, object]]]:
    """Reads OpenTTD's sound archive: a table of little-endian (offset, size) pairs, bit 31 of
    an offset marking the newer layout, then per clip a length-prefixed name and a WAV file.
    The names carry title, authors and licence."""
    data = (root / "usr/share/games/openttd/baseset/opensfx/opensfx.cat").read_bytes()
    count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
    clips = []
    for i in range(count):
        offset, size = struct.unpack_from("<II", data, 8 * i)
        offset &= 0x7FFFFFFF
        begin = offset + 1 + data[offset]
        name = data[offset + 1 : begin].rstrip(b"\0").decode("utf-8")
        match = re.match(r'"(.+?)"\. (.+)\. License: Creative Commons (\S+)', name)
        if match is None:
            raise BuildError(f"opensfx.cat: clip {i} has no credit line: {name!r}")
        licence = OPENSFX_LICENCES.get(match[3])
        if licence is None:
            raise BuildError(f"opensfx.cat: clip {i} has an unknown licence: {name!r}")
        if size <= 44:  # the empty clips, header only
            wav = np.zeros(0, np.float32)
        else:
            wav = dsp.read_any(io.BytesIO(data[begin : begin + size]))
        author = match[2].replace('"', "'").removeprefix("By ")
        clips.append(
            (
                wav,
                {
                    "source": source("openttd-opensfx", f"opensfx.cat #{i}"),
                    "title": match[1],
                    "author": author,
                    "licence": licence,
                },
            )
        )
    return clips


def cut(wav: np.ndarray, start: float, seconds: float) -> np.ndarray:
    """A stretch of a sound effect, silence trimmed, peak-normalised, at least 0.2 s."""
    wav = wav[int(start * dsp.RATE) : int((start + seconds) * dsp.RATE)]
    wav = dsp.fade(dsp.trim(wav, range_db=50.0), 0.001 if start == 0 else 0.02, 0.03)
    wav = np.pad(wav, (0, max(0, dsp.RATE // 5 - len(wav))))
    return wav * np.float32(SOUND_PEAK / np.abs(wav).max())


def add_sounds(corpus: Corpus, root: Path) -> None:
    """Adds the sound effects and the drum loops."""
    opensfx, credits = read_opensfx(root), sonic_pi_credits(root)

    def load(item) -> tuple[np.ndarray, dict[str, object]]:
        if isinstance(item, int):
            return opensfx[item]
        if item not in credits:
            raise BuildError(f"sonic-pi-samples: {item} is not listed as CC0 by name")
        return dsp.read_any(root / f"usr/share/sonic-pi/samples/{item}.flac"), {
            "source": source("sonic-pi-samples", f"samples/{item}.flac"),
            "title": item,
            "author": credits[item],
            "licence": "CC0-1.0",
        }

    for label, takes in tables.SOUNDS.items():
        for n, (item, start, seconds, split) in enumerate(takes, 1):
            wav, row = load(item)
            corpus.add(
                f"sound-{slug(label)}-{n}",
                cut(wav, start, seconds),
                kind="sound",
                label=label,
                split=split,
                synthetic=0,
                **row,
            )
    for label, takes in tables.LOOPS.items():
        for n, (item, split) in enumerate(takes, 1):
            wav, row = load(item)
            corpus.add(
                f"music-{slug(label)}-{n}",
                dsp.to_level(dsp.fade(wav, 0.001, 0.02), MUSIC_DBFS),
                kind="music",
                label=label,
                split=split,
                synthetic=0,
                **row,
            )


def add_music(corpus: Corpus, root: Path) -> None:
    """Adds the excerpts of music on hold."""
    package = "asterisk-moh-opsound-g722"
    for name, (label, title, author, starts) in tables.MUSIC.items():
        piece = dsp.read_g722(root / f"usr/share/asterisk/moh/{name}.g722")
        for n, start in enumerate(starts, 1):
            wav = piece[int(start * dsp.RATE) : int((start + tables.MUSIC_SECONDS) * dsp.RATE)]
            corpus.add(
                f"music-{slug(title)}-{n}",
                dsp.to_level(dsp.fade(wav, 0.05, 0.05), MUSIC_DBFS),
                kind="music",
                label=label,
                split="test" if n == len(starts) else "train",
                synthetic=0,
                source=source(package, f"moh/{name}.g722, {start} s on"),
                title=title,
                author=author,
                licence="CC-BY-SA-3.0",
            )


def check_versions() -> None:
    """The table names the version of the voice; the audio depends on it."""
    installed = importlib.metadata.version("hibari-tts")
    if installed != tables.HIBARI_VERSION:
        raise BuildError(
            f"hibari-tts is {installed}: pip install hibari-tts=={tables.HIBARI_VERSION}"
        )


def replace(new: Path, out: Path) -> None:
    """Puts a whole corpus in the place of the one in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("audio", "clips.tsv", "LICENSES.md"):
        old = out / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        shutil.move(new / name, old)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "mini", help="corpus folder, data/mini"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/mini_work"), help="download folder"
    )
    args = parser.parse_args()
    work = args.work.resolve()
    try:
        check_versions()
        root = unpack_packages(work)
        corpus = Corpus(work / "corpus")
        add_asterisk_speech(corpus, root)
        add_flite(corpus, root, work)
        add_hibari(corpus)
        add_sounds(corpus, root)
        add_music(corpus, root)
        corpus.write_table()
        corpus.write_notices()
        replace(corpus.out, args.out)
    except (BuildError, OSError, subprocess.CalledProcessError) as err:
        sys.exit(f"build_mini: {err}")
    real = sum(float(r["seconds"]) for r in corpus.rows if r["synthetic"] == "0")
    size = sum(p.stat().st_size for p in (args.out / "audio").iterdir())
    print(f"{len(corpus.rows)} clips, {real:.0f} s real, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
