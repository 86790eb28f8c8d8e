"""An engine that keeps what it generated, so that a killed evaluation loses one call at most."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.inference.requests import Generated, Request
from bagpiper_jax.json_lines import Journal


class RememberingEngine:
    """Stands before an `Engine`: what `generate` was asked before is read, not generated again.

    Ids of text and codes are kept, a line of the journal per call, under a digest of the weights
    and of all that was asked: prompts, clips, sampling, seeds. A call is a batch of the evaluator
    (`mini_probes.in_chunks`) and is kept or lost as a whole, so a resumed evaluation forms the same
    batches as an undisturbed one.
    """

    def __init__(self, engine: Any, journal: Journal, weights: str):
        """`weights`: digest of the model's weights."""
        self._engine = engine
        self._journal = journal
        self._weights = weights

    def generate(self, requests: Sequence[Request]) -> list[list[list[Generated]]]:
        """See `Engine.generate`."""
        key = fingerprint((self._weights, list(requests)))
        if key not in self._journal:
            answers = self._engine.generate(requests)
            self._journal.add(key, [[[_line(m) for m in h] for h in a] for a in answers])
        return [[[_message(m) for m in h] for h in a] for a in self._journal.get(key)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def fingerprint(value: Any) -> str:
    """SHA-256 of a value made of dataclasses, mappings, sequences, arrays and plain values."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value):
        _feed(digest, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        _feed(digest, sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _feed(digest, part)
    else:
        digest.update(f"{value!r};".encode())


def _line(message: Generated) -> dict[str, Any]:
    rows = np.asarray(message.rows)
    return {
        "modality": message.modality,
        "shape": rows.shape,
        "rows": rows.ravel().tolist(),
        "end": int(message.end),
    }


def _message(line: dict[str, Any]) -> Generated:
    rows = np.array(line["rows"], np.int32).reshape(line["shape"])
    return Generated(line["modality"], rows, line["end"])
