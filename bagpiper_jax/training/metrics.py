"""Metrics of a run: averages between logs, a progress bar, TensorBoard-readable files."""

from __future__ import annotations

import contextlib
import json
import os
import time

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.bagpiper import KINDS
from bagpiper_jax.training.speed import Speed


class MetricsLog:
    """Collects the metrics of steps and writes their means; a context manager.

    Writes TensorBoard events to `workdir/metrics`, one JSON line per log to
    `workdir/metrics.jsonl`, and a bar with loss, tokens/s, MFU and remaining time to stderr.
    """

    def __init__(self, workdir: str | None, *, start: int, steps: int, speed: Speed):
        """Opens the files.

        Args:
          workdir: of the run; None writes nothing, for all processes but the first.
          start, steps: steps done, and to do in all.
          speed: what utilisation is measured against.
        """
        self._workdir = workdir
        self._speed = speed
        self._writer = self._jsonl = None
        if workdir is not None:
            self._writer = SummaryWriter(os.path.join(workdir, "metrics"), purge_step=start)
            path = os.path.join(workdir, "metrics.jsonl")
            self._jsonl = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=1,
            disable=workdir is None,
        )
        self._done = start
        self._pending: list[dict] = []
        self._since = time.monotonic()
        self._waited = 0.0

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._workdir is None:
            return
        with contextlib.suppress(OSError):  # a full disk has been told, or is told by `write`
            self._writer.close()
        with contextlib.suppress(OSError):
            self._jsonl.close()

    def add(self, metrics: dict, input_wait: float) -> None:
        """Notes one step's metrics (device arrays, not read yet) and the wait for its batch."""
        self._pending.append(metrics)
        self._waited += input_wait
        self._bar.update(1)

    def write(self, step: int) -> list[int]:
        """Writes the means since the last call; returns the steps that were skipped."""
        pending = jax.device_get(self._pending)
        scalars = summarize(pending)
        elapsed = time.monotonic() - self._since
        seconds = elapsed / len(pending)
        scalars["tokens_per_second"] = sum(float(m["tokens"]) for m in pending) / elapsed
        scalars["model_flops_per_second"] = self._speed.step_flops / seconds
        scalars["mfu"] = self._speed.utilisation(seconds)
        scalars["input_wait"] = self._waited / elapsed
        memory = jax.local_devices()[0].memory_stats()  # None on CPUs
        if memory:
            scalars["memory_bytes"] = float(memory["peak_bytes_in_use"])
        skipped = [self._done + i + 1 for i, m in enumerate(pending) if float(m["skipped"])]
        self._pending, self._waited, self._since = [], 0.0, time.monotonic()
        self._done = step
        if self._workdir is not None:
            self._put(step, scalars)
        return skipped

    def _put(self, step: int, scalars: dict[str, float]) -> None:
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
            f"s1 {scalars['ce/stream1']:.2f}  {scalars['tokens_per_second']:.0f} tokens/s  "
            f"MFU {scalars['mfu']:.0%}"
        )

    def text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)
        self._bar.write(f"[{step}] {name}: {text}")

    def audio(self, name: str, wav: np.ndarray, sample_rate: int, step: int) -> None:
        self._writer.add_audio(name, wav[:, None], step, sample_rate=sample_rate)


def summarize(metrics: list[dict]) -> dict[str, float]:
    """Means over steps; values per stream and per kind of target weigh by their targets."""
    out = {
        name: float(np.mean([float(m[name]) for m in metrics]))
        for name in ("loss", "grad_norm", "learning_rate")
    }
    out["skipped"] = float(sum(float(m["skipped"]) for m in metrics))
    streams = [f"stream{k}" for k in range(len(metrics[0]["targets"]))]
    for prefix, names in (("", streams), ("kind_", KINDS)):
        targets = np.stack([m[f"{prefix}targets"] for m in metrics])
        weights = targets / np.maximum(targets.sum(0), 1)
        for name in ("ce", "accuracy"):
            values = (np.stack([m[prefix + name] for m in metrics]) * weights).sum(0)
            out |= {f"{name}/{of}": float(v) for of, v in zip(names, values, strict=True)}
        out |= {f"targets/{of}": float(n) for of, n in zip(names, targets.sum(0), strict=True)}
    return out
