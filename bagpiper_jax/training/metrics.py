"""Metrics of a run: averages between logs, a progress bar, TensorBoard-readable files."""

from __future__ import annotations

import contextlib
import json
import os
import time

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bagpiper_jax.errors import UserError


class MetricsLog:
    """Collects the metrics of steps and writes their means; a context manager.

    Writes TensorBoard events to `workdir/metrics`, one JSON line per log to
    `workdir/metrics.jsonl`, and a bar with loss, tokens/s and remaining time to standard error.
    """

    def __init__(self, workdir: str, *, start: int, steps: int):
        self._workdir = workdir
        self._writer = SummaryWriter(os.path.join(workdir, "metrics"), purge_step=start)
        self._jsonl = open(os.path.join(workdir, "metrics.jsonl"), "a", encoding="utf-8")  # noqa: SIM115
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=1)
        self._pending: list[dict] = []
        self._since = time.monotonic()
        self._waited = 0.0

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_):
        self._bar.close()
        with contextlib.suppress(OSError):  # a full disk has been told, or is told by `write`
            self._writer.close()
        with contextlib.suppress(OSError):
            self._jsonl.close()

    def add(self, metrics: dict, input_wait: float) -> None:
        """Notes one step's metrics (device arrays, not read yet) and the wait for its batch."""
        self._pending.append(metrics)
        self._waited += input_wait
        self._bar.update(1)

    def write(self, step: int) -> dict[str, float]:
        """Writes the means since the last call."""
        scalars = summarize(self._pending)
        elapsed = time.monotonic() - self._since
        tokens = sum(float(m["tokens"]) for m in self._pending)
        scalars["tokens_per_second"] = tokens / elapsed
        scalars["input_wait"] = self._waited / elapsed
        self._pending, self._waited, self._since = [], 0.0, time.monotonic()
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        try:
            self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
            self._jsonl.flush()
        except OSError as e:
            raise UserError(
                f"cannot write metrics to {self._workdir} ({e.strerror}): free some space and "
                "start again, the run resumes from its last whole checkpoint"
            ) from e
        self._bar.set_postfix_str(
            f"loss {scalars['loss']:.3f}  text+s0 {scalars['ce/stream0']:.3f}  "
            f"s1 {scalars['ce/stream1']:.2f}  {scalars['tokens_per_second']:.0f} tokens/s"
        )
        return scalars

    def text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)
        self._bar.write(f"[{step}] {name}: {text}")

    def audio(self, name: str, wav: np.ndarray, sample_rate: int, step: int) -> None:
        self._writer.add_audio(name, wav[:, None], step, sample_rate=sample_rate)


def summarize(metrics: list[dict]) -> dict[str, float]:
    """Means over steps; per-stream values weigh by their targets."""
    targets = np.stack([np.asarray(m["targets"]) for m in metrics])
    weights = targets / np.maximum(targets.sum(0), 1)
    out = {
        name: float(np.mean([float(m[name]) for m in metrics]))
        for name in ("loss", "grad_norm", "learning_rate")
    }
    out["skipped"] = float(sum(float(m["skipped"]) for m in metrics))
    for name in ("ce", "accuracy"):
        values = (np.stack([np.asarray(m[name]) for m in metrics]) * weights).sum(0)
        out.update({f"{name}/stream{k}": float(v) for k, v in enumerate(values)})
    return out
