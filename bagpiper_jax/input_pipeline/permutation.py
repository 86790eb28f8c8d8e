"""Shuffling without a pass over the data: keyed permutations, evaluated where they are needed.

A permutation of `size` numbers is a Feistel network on pairs (high, low) of a mixed radix, whose
halves are added to by turns (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002); the
few pairs that are no numbers below `size` are walked on until one is. It takes no memory, and it is
the same on every machine.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numba
import numpy as np

_ROUNDS = 8  # four on each half
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_ONE = np.uint64(1)


def key_of(*parts) -> np.uint64:
    """A key that depends on its arguments only, in any process."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def chance(*parts) -> float:
    """A uniform number in [0, 1) that depends on its arguments only."""
    return int(key_of(*parts)) / 2.0**64


def shuffled(numbers: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """Values of an endless order in which each epoch of `size` numbers is a permutation of its own.

    Args:
      numbers: int64 [n], from 0; number // size is the epoch.
      size: values of an epoch, at most 2^62.
      key: of the order.

    Returns:
      int64 [n], in [0, size).
    """
    high = math.isqrt(size - 1) + 1 if size > 1 else 1
    low = -(-size // high)  # high · low pairs, of which fewer than `high` are no numbers
    numbers = np.asarray(numbers, np.int64).astype(np.uint64)
    size, high, low = np.uint64(size), np.uint64(high), np.uint64(low)
    return _shuffled(numbers, size, high, low, np.uint64(key)).astype(np.int64)


@numba.njit(cache=True)
def _mixed(value):
    """The finaliser of SplitMix64: a bijection of uint64 without visible order."""
    value = (value ^ (value >> _SHIFTS[0])) * _MIX[0]
    value = (value ^ (value >> _SHIFTS[1])) * _MIX[1]
    return value ^ (value >> _SHIFTS[2])


@numba.njit(cache=True)
def _shuffled(numbers, size, num_high, num_low, key):
    values = np.empty_like(numbers)
    for i in range(len(numbers)):
        epoch = numbers[i] // size
        epoch_key = _mixed(key + (epoch + _ONE) * _GOLDEN)
        value = numbers[i] - epoch * size
        while True:
            high = value // num_low
            low = value - high * num_low
            round_key = epoch_key
            for _ in range(_ROUNDS // 2):
                round_key += _GOLDEN
                high = (high + _mixed(low ^ round_key) % num_high) % num_high
                round_key += _GOLDEN
                low = (low + _mixed(high ^ round_key) % num_low) % num_low
            value = high * num_low + low
            if value < size:
                break
        values[i] = value
    return values
