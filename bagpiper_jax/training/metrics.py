"""Metrics of a run: averages between logs, a progress bar, TensorBoard-readable files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_text
from bagpiper_jax.modeling.bagpiper import KINDS
from bagpiper_jax.training.speed import Speed


class MetricsLog:
    """Collects the metrics of steps and writes their means; a context manager.

    Writes TensorBoard events to `workdir/metrics`, one JSON line per log to
    `workdir/metrics.jsonl`, and a bar with loss, tokens/s, MFU and remaining time to stderr.
    """

    def __init__(
        self, workdir: str | None, *, start: int, steps: int, speed: Speed, wandb: str = ""
    ):
        """Opens the files.

        Args:
          workdir: of the run; None writes nothing, for all processes but the first.
          start, steps: steps done, and to do in all.
          speed: what utilisation is measured against.
          wandb: project of Weights & Biases that gets the numbers too; empty: none.

        Raises:
          UserError: wandb is not installed.
        """
        self._workdir = workdir
        self._speed = speed
        self._writer = self._jsonl = self._wandb = None
        if workdir is not None:
            self._wandb = _wandb_run(wandb, workdir) if wandb else None
            self._writer = SummaryWriter(os.path.join(workdir, "metrics"), purge_step=start + 1)
            path = os.path.join(workdir, "metrics.jsonl")
            _forget_after(path, start)
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
        if self._wandb is not None:
            self._wandb.finish()
        with contextlib.suppress(OSError):  # a full disk has been told, or is told by `write`
            self._writer.close()
        with contextlib.suppress(OSError):
            self._jsonl.close()

    def add(self, metrics: dict, input_wait: float) -> None:
        """Notes one step's metrics (device arrays, not read yet) and the wait for its batch."""
        self._pending.append(metrics)
        self._waited += input_wait
        self._bar.update(1)

    def keep_up(self) -> None:
        """Returns when the step before the last one is done: the host is no more than one ahead.

        A host further ahead waits for batches while its devices are busy, and holds them there.
        """
        jax.block_until_ready(self._pending[-2:-1])

    def write(self, step: int) -> list[int]:
        """Writes the means since the last call, if any; returns the steps that were skipped."""
        if not self._pending:
            return []
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
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)
        try:
            finite = {name: x if math.isfinite(x) else None for name, x in scalars.items()}
            self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
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


def _wandb_run(project: str, workdir: str):
    """The run of this workdir, which goes on when the training does."""
    try:
        import wandb
    except ImportError as e:
        raise UserError("--wandb needs: pip install 'bagpiper_jax[wandb]'") from e
    name = os.path.basename(os.path.abspath(workdir))
    digest = hashlib.sha256(os.path.abspath(workdir).encode()).hexdigest()[:12]
    return wandb.init(project=project, name=name, id=digest, resume="allow", dir=workdir)


def _forget_after(path: str, step: int) -> None:
    """Drops lines of steps that will be done again, and one that was cut by a kill."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        lines = [line for line in f if line.endswith("}\n")]
    write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= step))


def summarize(metrics: list[dict]) -> dict[str, float]:
    """Means over steps; values per stream and per kind of target weigh by their targets.

    Of steps that were skipped only the number is told, unless all were.
    """
    number = sum(float(m["skipped"]) for m in metrics)
    metrics = [m for m in metrics if not float(m["skipped"])] or metrics
    out = {
        name: float(np.mean([float(m[name]) for m in metrics]))
        for name in ("loss", "grad_norm", "learning_rate")
    }
    out["skipped"] = number
    streams = [f"stream{k}" for k in range(len(metrics[0]["targets"]))]
    for prefix, names in (("", streams), ("kind_", KINDS)):
        targets = np.stack([m[f"{prefix}targets"] for m in metrics])
        weights = targets / np.maximum(targets.sum(0), 1)
        for name in ("ce", "accuracy"):
            values = (np.stack([m[prefix + name] for m in metrics]) * weights).sum(0)
            out |= {f"{name}/{of}": float(v) for of, v in zip(names, values, strict=True)}
        out |= {f"targets/{of}": float(n) for of, n in zip(names, targets.sum(0), strict=True)}
    return out
