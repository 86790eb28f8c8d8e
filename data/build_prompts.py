"""Builds a corpus of 2.1 hours of recorded prompts in five languages from Debian packages.

    python data/build_prompts.py --to DIR
    bagpiper data prepare --source DIR/prompts.jsonl --out DIR/prepared

The core sounds of Asterisk: English, Spanish, French, Italian and Russian, one voice each, with
their exact texts. Recordings become 16 kHz FLAC; the manifest has a plain caption for each. Needs
apt-get and dpkg, and the Python packages av, numpy and soundfile (extra `data`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import mini_signal as dsp
    import soundfile as sf
except ImportError as err:
    sys.exit(f"build_prompts: {err}; install the extra data")

# package: folder, tag, who speaks, author, licence
VOICES = {
    "en": ("en_US_f_Allison", "en", "A woman says in English", "Allison Smith", "CC-BY-SA-3.0"),
    "es": ("es_MX_f_Allison", "es", "A woman says in Spanish", "Allison Smith", "CC-BY-SA-3.0"),
    "fr": ("fr_CA_f_June", "fr", "A woman says in French", "June Wallack", "CC-BY-SA-3.0"),
    "it": ("it_IT_m_Carlo", "it", "A man says in Italian", "Carlo Flora", "CC-BY-SA-3.0"),
    "ru": ("ru_RU_f_IvrvoiceRU", "ru", "A woman says in Russian", "ivrvoice.ru", "CC-BY-3.0"),
}


def unpack(work: Path) -> Path:
    """Downloads and unpacks the packages; returns the unpacked root."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            sys.exit(f"build_prompts: {tool} not found; this build runs on Debian")
    root = work / "root"
    work.mkdir(parents=True, exist_ok=True)
    for name in VOICES:
        for package in (f"asterisk-core-sounds-{name}-g722", f"asterisk-core-sounds-{name}"):
            if not list(work.glob(f"{package}_*.deb")):
                fetch = ["apt-get", "download", package]
                done = subprocess.run(fetch, cwd=work, capture_output=True, text=True)
                if done.returncode:
                    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                    sys.exit(f"build_prompts: apt-get download {package}: {last}")
            deb = next(work.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
    return root


def texts(root: Path, name: str) -> dict[str, str]:
    """Prompt → its words; prompts that are tones or music, in brackets, are left out."""
    listing = root / f"usr/share/doc/asterisk-core-sounds-{name}/core-sounds-{name}.txt.gz"
    lines = gzip.decompress(listing.read_bytes()).decode("utf-8-sig").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    words = {key.strip(): " ".join(text.split()) for key, text in pairs}
    return {key: text for key, text in words.items() if text and not re.search(r"[\[\]]", text)}


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, required=True, help="directory to write")
    args = parser.parse_args()
    root = unpack(args.to / "packages")
    seconds, rows = 0.0, []
    for name, (folder, language, saying, author, licence) in VOICES.items():
        for prompt, text in sorted(texts(root, name).items()):
            path = root / "usr/share/asterisk/sounds" / folder / f"{prompt}.g722"
            if not path.exists():
                continue
            wav = dsp.read_g722(path)
            audio = Path("audio") / name / f"{prompt}.flac"
            (args.to / audio).parent.mkdir(parents=True, exist_ok=True)
            sf.write(args.to / audio, wav, dsp.RATE)
            seconds += len(wav) / dsp.RATE
            rows.append(
                {
                    "id": f"{name}/{prompt}",
                    "audio": str(audio),
                    "caption": f'{saying}: "{text}"',
                    "domain": "speech",
                    "language": language,
                    "licence": licence,
                    "author": author,
                }
            )
    manifest = args.to / "prompts.jsonl"
    with open(manifest, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{manifest}: {len(rows)} prompts, {seconds / 3600:.2f} h")


if __name__ == "__main__":
    main()
