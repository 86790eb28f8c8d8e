"""Ranges that the numbers of a run's config must lie in, by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bagpiper_jax.errors import UserError

# words, what they allow (never nan), keys
_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "positive",
        lambda x: 0 < x < math.inf,
        (
            *("steps", "log_every", "save_every", "sample_every", "keep"),
            *("data.batch_tokens", "data.length", "data.windows", "compute.accumulation"),
            *("optimizer.peak_lr", "optimizer.eps", "optimizer.clip"),
        ),
    ),
    (
        "0 or more",
        lambda x: 0 <= x < math.inf,
        (
            *("seed", "keep_every", "data.workers", "optimizer.warmup_steps"),
            *("optimizer.weight_decay", "optimizer.final_ratio", "optimizer.encoder_lr_ratio"),
        ),
    ),
    ("from 0 to 1", lambda x: 0 <= x <= 1, ("data.cfg_dropout",)),
    ("from 0 to less than 1", lambda x: 0 <= x < 1, ("optimizer.b1", "optimizer.b2")),
)


def check_ranges(settings: Mapping[str, Any]) -> None:
    """Refuses numbers out of range.

    Args:
      settings: dotted key → value of all settings.

    Raises:
      UserError: a number is out of its range.
    """
    for words, allows, keys in _RANGES:
        for key in keys:
            if not allows(settings[key]):
                raise UserError(f"config key {key} must be {words}, not {settings[key]}")
