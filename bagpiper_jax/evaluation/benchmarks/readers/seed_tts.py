"""Seed-TTS-Eval: `meta.lst`, lines `utt|prompt text|prompt wav|text[|wav of the text]`.

Source: github.com/BytedanceSpeech/seed-tts-eval, which states no licence of its own; its recordings
are from Common Voice (en) and DiDiSpeech-2 (zh).
"""

from __future__ import annotations

import os

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks.item import Item, check_audio

FILE = "meta.lst"
MEND = "unpack the release of seed-tts-eval again"


def read_seed_tts(path: str) -> list[Item]:
    """The texts to speak; `audio` is a true recording of the text where the line names one.

    Lines of two fields (`utt|text`) and of three (`utt|text|prompt wav`) are taken too, as the
    official scripts take them.

    Args:
      path: the list, or the folder of `meta.lst`, such as `seedtts_testset/en`.

    Raises:
      UserError: the file or a line is missing or damaged, or a recording of a text is missing.
    """
    file = os.path.join(path, FILE) if os.path.isdir(path) else path
    folder = os.path.dirname(os.path.abspath(file))
    try:
        with open(file, encoding="utf-8") as lines:
            rows = [row.strip() for row in lines]
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read ({e}): {MEND}") from e
    items: list[Item] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        where = f"{file}, line {number}"
        key, text, prompt_text, prompt_wav, recording = _fields(row, where)
        if key in seen:
            raise UserError(f"{where}: the utterance {key} occurs twice: {MEND}")
        seen.add(key)
        if recording:
            recording = os.path.join(folder, recording)
            check_audio(recording, where, MEND)
        extra = {"prompt_text": prompt_text, "prompt_wav": prompt_wav}
        items.append(Item(key, recording, "", (), text, "", extra))
    if not items:
        raise UserError(f"{file} has no lines: {MEND}")
    return items


def _fields(row: str, where: str) -> tuple[str, str, str, str, str]:
    """utt, text, prompt text, prompt wav, recording."""
    fields = [field.strip() for field in row.split("|")]
    utt, text, prompt_text, prompt_wav, recording = fields[0], "", "", "", ""
    if len(fields) == 2:
        text = fields[1]
    elif len(fields) == 3:
        text, prompt_wav = fields[1:]
    elif len(fields) in (4, 5):
        prompt_text, prompt_wav, text = fields[1:4]
        recording = fields[4] if len(fields) == 5 else ""
    if not utt or not text:
        raise UserError(
            f"{where}: it is no `utt|prompt text|prompt wav|text`, its fields are "
            f"{len(fields)}: {MEND}"
        )
    return utt.removesuffix(".wav"), text, prompt_text, prompt_wav, recording
