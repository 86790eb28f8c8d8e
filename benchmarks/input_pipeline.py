"""The input pipeline: audio-hours and packed positions per second, beside PyTorch's DataLoader.

    python benchmarks/input_pipeline.py [--clips 150] [--seconds 6] [--workers 2] [--need 6600]

Clips of 3 to 15 s (44.1 kHz stereo FLAC) with captions are made in a temporary directory. The
plain DataLoader decodes, resamples, makes the mel (torch.stft), tokenizes and pads in every epoch;
without PyTorch its line is left out. Ours does the first two, and the mel where it is kept, once in
`prepare`; what that costs stands in a line of its own. Both are measured on one core by CPU time
and then with worker processes by the clock. Last comes the cost of planning alone.
"""

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import soundfile

from bagpiper_jax.audio import load_audio
from bagpiper_jax.conversation import MARKERS_PER_MESSAGE
from bagpiper_jax.input_pipeline.mixture import DEFAULT_MIXTURE, Source, spread
from bagpiper_jax.input_pipeline.packed_records import PackedRecords
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.plan_statistics import plan_statistics
from bagpiper_jax.input_pipeline.records import Record
from bagpiper_jax.input_pipeline.step_rows import host_batches, one_blas_thread
from bagpiper_jax.log_mel import HOP, N_FFT, clip_tokens, mel_filters
from bagpiper_jax.preparation.item import Audio, Item
from bagpiper_jax.preparation.options import Options, load_tools
from bagpiper_jax.preparation.prepare import prepare

WORDS = "a dog barks twice while some rain falls near the old man who says seven three".split()
PART = 10  # clips of a source's part
BATCH = 8  # clips of a DataLoader's batch
SHAPE = RowShape(8192, 512)


class Clips:
    """Noise with captions of 20 to 60 words, as files."""

    name = "noise"

    def __init__(self, directory: str, count: int):
        rng = np.random.default_rng(0)
        self.files, self.captions, self.seconds = [], [], []
        for i in range(count):
            seconds = rng.uniform(3, 15)
            wav = 0.1 * rng.standard_normal((int(44_100 * seconds), 2))
            path = os.path.join(directory, f"{i}.flac")
            soundfile.write(path, wav, 44_100)
            self.files.append(path)
            self.captions.append(" ".join(rng.choice(WORDS, rng.integers(20, 60))))
            self.seconds.append(seconds)

    def parts(self) -> list[str]:
        return [str(start) for start in range(0, len(self.files), PART)]

    def stamp(self) -> str:
        return ""

    def read(self, part: str) -> Iterator[Item]:
        for i in range(int(part), min(int(part) + PART, len(self.files))):
            path, caption = self.files[i], self.captions[i]
            yield Item(str(i), (Audio(path=path),), caption)


class WithoutMel:
    """A prepared set of which the mel was not kept."""

    def __init__(self, prepared):
        self._prepared = prepared
        self.name, self.fingerprint = prepared.name, prepared.fingerprint
        self.rows, self.windows = prepared.rows, prepared.windows

    def __len__(self) -> int:
        return len(self._prepared)

    def __getitem__(self, i: int) -> Record:
        record = self._prepared[i]
        clips = tuple(dataclasses.replace(clip, mel=None) for clip in record.clips)
        return dataclasses.replace(record, clips=clips)

    @property
    def seconds(self) -> np.ndarray:
        return self._prepared.seconds


def torch_batches(clips: Clips, tokenizer, workers: int) -> Iterator[tuple[float, int]]:
    """(seconds of audio, positions) of each batch of a plain DataLoader, epoch after epoch."""
    import torch

    torch.set_num_threads(1)
    window = torch.hann_window(N_FFT)
    filters = torch.from_numpy(mel_filters())

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return len(clips.files)

        def __getitem__(self, i):
            wav = torch.from_numpy(load_audio(clips.files[i]))
            wav = (wav - wav.mean()) / torch.sqrt(wav.var(correction=0) + 1e-7)
            spectrum = torch.stft(wav, N_FFT, HOP, window=window, return_complex=True)
            log = torch.log10(torch.clamp((spectrum[:, :-1].abs() ** 2).T @ filters, min=1e-10))
            mel = (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
            return mel, torch.tensor(tokenizer.encode(clips.captions[i])), clips.seconds[i]

    def collate(items):
        pad = torch.nn.utils.rnn.pad_sequence
        mels, ids, seconds = zip(*items)
        positions = sum(
            1 + 2 * MARKERS_PER_MESSAGE + len(i) + clip_tokens(HOP * len(m))
            for m, i in zip(mels, ids)
        )
        return pad(mels, batch_first=True), pad(ids, batch_first=True), sum(seconds), positions

    loader = torch.utils.data.DataLoader(
        Data(),
        BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    while True:
        for _, _, seconds, positions in loader:
            yield seconds, positions


def our_batches(source: PackedRecords, workers: int) -> Iterator[tuple[float, int]]:
    """(seconds of audio that is heard or spoken, positions) of each packed row."""
    batches = host_batches(source, 1, np.arange(1), 0, workers)
    try:
        for row, _ in enumerate(batches):
            planned = source.plan[row]
            seconds = sum(
                source.sources[p.source].examples.seconds[p.index]
                for p in planned
                if source.sources[p.source].task != "text_only"
            )
            yield float(seconds), sum(p.rows for p in planned)
    finally:
        batches.close()


def rates(batches, limit: float, clock) -> tuple[float, float]:
    """Audio-hours and positions per second of the clock, after a warm start."""
    for _ in itertools.islice(batches, 3):
        pass
    audio = positions = 0.0
    start = clock()
    for seconds, count in batches:
        audio, positions = audio + seconds, positions + count
        if clock() - start > limit:
            break
    taken = clock() - start
    batches.close()
    return audio / 3600 / taken, positions / taken


def plan_rate(count: int) -> None:
    """Planning alone, as at a restore without a saved position."""

    class Sizes:
        name = fingerprint = "sizes"

        def __init__(self):
            rng = np.random.default_rng(0)
            self._rows = np.clip(rng.lognormal(6, 0.5, count), 30, 8000).astype(np.int32)

        def __len__(self):
            return count

        def rows(self, task):
            return self._rows

        def windows(self, task):
            return np.zeros(count, np.int32)

    sizes = Sizes()
    config, rows = load_tools(Options(codes=False)).config, 64 * 200
    start = time.process_time()
    source = PackedRecords(
        [Source(sizes, "text_only", 1.0)],
        config,
        None,
        shape=RowShape(8192, 8),
        num_rows=rows,
        seed=0,
    )
    opened = time.process_time() - start
    source.plan.position(64)  # compiles
    start = time.process_time()
    after = source.plan.position(rows)
    taken = time.process_time() - start
    start = time.process_time()
    found = plan_statistics(source)
    served = time.process_time() - start
    print(
        f"planning {count:.0e} examples: opened in {opened:.2f} s; passed over at "
        f"{1e6 * taken / sum(after.read):.2f} us an example, planned and ordered at "
        f"{1e6 * served / sum(after.read):.2f} us; fill {100 * found.fill:.2f} %"
    )


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--need",
        type=float,
        default=6_600,
        help="positions/s that a chip trains; by default the most that the arithmetic of the 8B "
        "model lets a v5p chip do (docs/compile/v5p_4x4x8.json)",
    )
    parser.add_argument("--examples", type=int, default=10_000_000, help="of the plan")
    args = parser.parse_args()
    one_blas_thread()
    with tempfile.TemporaryDirectory() as directory:
        clips = Clips(directory, args.clips)
        hours = sum(clips.seconds) / 3600
        tools = load_tools(Options(codes=False))
        start = time.perf_counter()
        prepared = prepare(
            [clips], os.path.join(directory, "set"), Options(keep="both"), quiet=True
        )
        rate = hours / (time.perf_counter() - start)
        print(f"prepare, codec codes and mel, all cores, by the clock: {rate:.4f} audio-hours/s")
        sets = {"mel": prepared, "audio": WithoutMel(prepared)}

        def source(keep, mixture):
            return PackedRecords(
                spread([(sets[keep], task, 1.0) for task in mixture], mixture),
                tools.config,
                tools.tokenizer,
                shape=SHAPE,
                num_rows=10**6,
                seed=0,
            )

        heard = {"audio_to_text": 1.0}
        ways = {
            "PyTorch DataLoader": lambda w: torch_batches(clips, tools.tokenizer, w),
            "ours, mel kept": lambda w: our_batches(source("mel", heard), w),
            "ours, mel from FLAC": lambda w: our_batches(source("audio", heard), w),
            "ours, mel kept, 2:1:1": lambda w: our_batches(source("mel", DEFAULT_MIXTURE), w),
            "ours, mel from FLAC, 2:1:1": lambda w: our_batches(
                source("audio", DEFAULT_MIXTURE), w
            ),
        }
        try:
            import torch  # noqa: F401
        except ImportError:
            print("PyTorch is not installed: no DataLoader to compare with")
            del ways["PyTorch DataLoader"]
        for name, make in ways.items():
            audio, positions = rates(make(0), args.seconds, time.process_time)
            wall_audio, wall_positions = rates(make(args.workers), args.seconds, time.perf_counter)
            print(
                f"{name}: {audio:.4f} audio-hours/s and {positions:,.0f} positions/s of a core "
                f"(CPU time); {args.workers} workers by the clock {wall_audio:.4f} and "
                f"{wall_positions:,.0f}; {args.need / positions:.2f} cores feed a chip that trains "
                f"{args.need:,.0f} positions/s"
            )
    plan_rate(args.examples)


if __name__ == "__main__":
    main()
