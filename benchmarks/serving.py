"""`bagpiper serve` under many clients: waiting times by task, memory, and refusals of too many.

    python benchmarks/serving.py [--checkpoint DIR] [--clients 32] [--seconds 30]

The server is a process of its own, here on the same machine as its clients, which use OpenAI's
package. Every client asks one thing after the other, tasks mixed by chance: a caption of a scene, a
rendered caption as a stream and as a whole, a caption with its sound, and a stream of text. The
first --warm seconds, in which the server compiles, are left out. Then, more requests at once than
may wait.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openai
import soundfile

from bagpiper_jax.input_pipeline.scenes import Corpus, plan_scene, render_scene

CORPUS = Path(__file__).parents[1] / "data" / "mini"
SCENES = 24
TASKS = ("describe", "render, streamed", "render", "caption and sound", "chat, streamed")


def scenes() -> tuple[list[str], list[str]]:
    """Captions of held-out scenes, and the scenes as WAV in base64."""
    corpus = Corpus.load(CORPUS)
    captions, clips = [], []
    for i in range(SCENES):
        scene = plan_scene(corpus, 1, i, "test_a")
        file = io.BytesIO()
        soundfile.write(file, render_scene(corpus, scene), 16_000, format="WAV")
        captions.append(scene.caption)
        clips.append(base64.b64encode(file.getvalue()).decode())
    return captions, clips


@contextlib.contextmanager
def serving(checkpoint: str | None, queue: int):
    """The server as a process: (base URL, model, process id)."""
    command = [sys.executable, "-m", "bagpiper_jax.cli", "serve", "--port", "0"]
    command += ["--queue", str(queue)] + (["--checkpoint", checkpoint] if checkpoint else [])
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            for line in process.stderr:
                if found := re.search(r": (\S+) at (http://\S+)", line):
                    break
            else:
                raise SystemExit("the server did not start")
            log = collections.deque(maxlen=200)
            asyncio.get_running_loop().run_in_executor(None, log.extend, process.stderr)
            yield found[2], found[1], process.pid
        finally:
            process.terminate()
            process.wait(60)
    print("".join(line for line in log if "ERROR" in line), end="")


def memory(process: int) -> float:
    """Resident memory in MiB, where the system tells it."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float("nan")


class Clients:
    """They ask until the time is over."""

    def __init__(self, url: str, model: str, data, seed: int):
        # their patience is longer than the server's
        self._openai = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=900)
        self._model, (self._captions, self._clips) = model, data
        self._dice = np.random.default_rng(seed)
        self.clear()

    def clear(self) -> None:
        """Forgets what was measured."""
        self.taken = collections.defaultdict(list)
        self.first = collections.defaultdict(list)
        self.failed = collections.Counter()

    async def one(self, task: str) -> None:
        """One request, timed."""
        start = time.perf_counter()
        try:
            await self._ask(task, start)
            self.taken[task].append(time.perf_counter() - start)
        except openai.APIStatusError as e:
            self.failed[e.status_code] += 1
            self.taken[e.status_code].append(time.perf_counter() - start)
        except openai.APIError as e:
            self.failed[type(e).__name__] += 1

    async def many(self, count: int, seconds: float) -> None:
        """Clients side by side, each with one request at a time."""
        end = time.perf_counter() + seconds

        async def client():
            while time.perf_counter() < end:
                await self.one(TASKS[self._dice.integers(len(TASKS))])

        await asyncio.gather(*(client() for _ in range(count)))

    async def _ask(self, task: str, start: float) -> None:
        number = int(self._dice.integers(SCENES))
        content, more = self._captions[number], {}
        if task == "describe":
            audio = {"data": self._clips[number], "format": "wav"}
            content = [{"type": "input_audio", "input_audio": audio}]
        elif task.startswith("render"):
            more = {"modalities": ["audio"]}
        elif task.startswith("caption"):
            more = {"extra_body": {"vllm_xargs": {"mode": "text_audio"}}}
        answer = await self._openai.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": content}],
            stream="stream" in task,
            seed=int(self._dice.integers(2**31)),
            **more,
        )
        if "stream" not in task:
            return
        begun = False
        async for chunk in answer:
            delta = chunk.choices[0].delta.to_dict() if chunk.choices else {}
            audio = delta.get("audio") or {}
            if not begun and (audio.get("data") or delta.get("content")):
                self.first[task].append(time.perf_counter() - start)
                begun = True


def percentiles(values: list[float]) -> str:
    """The median and the 95th percentile, in seconds."""
    if not values:
        return "        –        –"
    return f"{statistics.median(values):9.2f} {np.percentile(values, 95):8.2f}"


async def measure(args) -> None:
    """Warms up, measures, overloads."""
    data = scenes()
    with serving(args.checkpoint, args.queue) as (url, model, process):
        clients = Clients(url, model, data, seed=0)
        await clients.many(args.clients, args.warm)
        clients.clear()

        kept = []

        async def watch():
            while True:
                kept.append(memory(process))
                await asyncio.sleep(args.seconds / 10)

        watching = asyncio.create_task(watch())
        start = time.perf_counter()
        await clients.many(args.clients, args.seconds)
        taken = time.perf_counter() - start
        watching.cancel()
        kept.append(memory(process))
        done = sum(len(clients.taken[task]) for task in TASKS)
        print(
            f"{args.clients} clients, {taken:.0f} s: {done} requests, {done / taken:.2f} a second, "
            f"{sum(clients.failed.values())} errors {dict(clients.failed) or ''}"
        )
        print(f"{'seconds':18} {'count':>6} {'p50':>9} {'p95':>8}   first p50      p95")
        for task in TASKS:
            row = f"{task:18} {len(clients.taken[task]):6} {percentiles(clients.taken[task])}"
            print(row, f"  {percentiles(clients.first[task])}" if "stream" in task else "")
        print("resident MiB over time:", " ".join(f"{m:.0f}" for m in kept))

        clients.clear()
        at_once = 3 * (args.queue + 16)
        await asyncio.gather(*(clients.one("chat, streamed") for _ in range(at_once)))
        refused = clients.taken[429]
        print(
            f"{at_once} requests at once: {len(clients.taken['chat, streamed'])} answered, "
            f"{len(refused)} × 429 after {percentiles(refused).split()[0]} s (median), "
            f"other errors {sum(clients.failed.values()) - len(refused)}; "
            f"{memory(process):.0f} MiB afterwards"
        )


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", help="default: embedded mini model")
    for name, value in (("clients", 32), ("seconds", 30), ("warm", 60), ("queue", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
