"""Published figures, to be laid beside ours. In the units of our figures: shares, not per cent.

Source: arXiv 2602.05220 (Bagpiper). Which subsets stand behind its AudioBench score, and how the
words were taken from captions for its word error rate, the paper's table does not say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SOURCE = "arXiv 2602.05220"


class Published(NamedTuple):
    """A row of the table; None where nothing is given.

    wer: of transcripts in captions. mmau_mini: accuracy. air_bench_chat: 1 to 10. audio_bench:
    0 to 100. tts_wer: of speech generated from the text of LibriSpeech test-clean.
    """

    model: str
    params: str
    wer: float | None = None
    mmau_mini: float | None = None
    air_bench_chat: float | None = None
    audio_bench: float | None = None
    tts_wer: float | None = None


TABLE = (
    Published("Qwen3-Captioner", "30B-A3B", wer=0.055, mmau_mini=0.711),
    Published("Bagpiper-Base", "8B", wer=0.050, mmau_mini=0.690),
    Published(
        "Bagpiper (SFT)", "8B", wer=0.025, mmau_mini=0.745, air_bench_chat=6.57, audio_bench=70.39
    ),
    Published("Bagpiper", "8B", tts_wer=0.027),
)


def published(figure: str) -> list[dict[str, Any]]:
    """The rows that give a figure: model, params, value, source."""
    return [
        {"model": row.model, "params": row.params, "value": value, "source": SOURCE}
        for row in TABLE
        if (value := getattr(row, figure)) is not None
    ]
