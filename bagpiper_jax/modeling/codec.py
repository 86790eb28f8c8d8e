"""The audio codec protocol: what the data pipeline, the model and the command line ask of a codec.

`mel_codec.MelCodec` (embedded, no download) and X-codec both satisfy it. `BlockStream` is how both
decode while codes still come.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from bagpiper_jax.errors import UserError


class CodecStream(Protocol):
    """Decodes one message while its codes still come.

    What all the calls give, joined, does not depend on how the frames were cut into pushes: the
    samples of `Codec.decode` of all frames, T * hop of them.
    """

    def push(self, codes: np.ndarray) -> np.ndarray:
        """The next frames, int [t, K] → float32 samples that are now certain, maybe none.

        The first push sets K.

        Raises:
            UserError: no codes of this codec, or another K than before; the stream stays as it was.
            RuntimeError: the stream is finished.
        """
        ...

    def finish(self) -> np.ndarray:
        """There are no more frames: the rest of the samples, float32.

        Raises:
            RuntimeError: the stream is finished already.
        """
        ...


@runtime_checkable
class Codec(Protocol):
    """Maps mono audio to K parallel streams of codes and back.

    Both directions are pure functions of their input: a result depends neither on the batch nor on
    padding. `encode` runs in data workers, so an implementation must not need an accelerator there.
    """

    sample_rate: int
    """Hz."""
    hop: int
    """Samples per frame."""
    frame_rate: float
    """Frames per second, `sample_rate / hop`."""
    codebook_sizes: tuple[int, ...]
    """Number of codes of each of the K streams."""

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """float [S] at `sample_rate` → int32 [T, K], T = ceil(S / hop), [t, k] in [0, sizes[k])."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [T, K] → float32 [T * hop] in [-1, 1]."""
        ...

    def stream(self) -> CodecStream:
        """Starts to decode one message, whose frames are yet to come."""
        ...


def checked_codes(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Codes that may be decoded: int [T, K'] of the first K' ≤ K streams.

    Raises:
        UserError: a wrong shape or type, or a code outside [0, its codebook's size).
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(sizes):
        raise UserError(f"codes must have shape [frames, 1..{len(sizes)}], got {codes.shape}")
    if not np.issubdtype(codes.dtype, np.integer):
        raise UserError(f"codes must be integers, got {codes.dtype}")
    wrong = (codes < 0) | (codes >= np.array(sizes[: codes.shape[1]]))
    if wrong.any():
        frame, stream = np.argwhere(wrong)[0]
        raise UserError(
            f"codes of stream {stream} must lie in [0, {sizes[stream]}), "
            f"got {codes[frame, stream]} in frame {frame}"
        )
    return codes


class BlockStream:
    """A `CodecStream` that decodes blocks of so many frames, on a schedule fixed from the start.

    So a block is decoded from the same frames, in the same shapes, whatever the pushes were.
    """

    def __init__(
        self,
        step: Callable[[np.ndarray, int], np.ndarray],
        check: Callable[[np.ndarray], np.ndarray],
        *,
        hop: int,
        block: int,
        reach: int,
    ):
        """
        Args:
            step: called block after block with (frames, at): int [n, K], the block that starts at
                frames[at] with up to `reach` frames before and after it, fewer only where the
                message begins or ends; gives samples, which may lag behind. After the last frame it
                is called on, without frames at `at`, until all samples are out.
            check: codes as given → int [t, K], or a UserError.
            hop: samples per frame.
            block: frames.
            reach: frames.
        """
        self._step, self._check = step, check
        self._hop, self._block, self._reach = hop, block, reach
        self._codes: np.ndarray | None = None  # known frames from `_first` on
        self._first = self._start = self._samples = 0
        self._finished = False

    def push(self, codes: np.ndarray) -> np.ndarray:
        """See `CodecStream.push`."""
        self._open()
        codes = self._check(codes)
        if self._codes is None:
            self._codes = codes.copy()
        elif codes.shape[1] != self._codes.shape[1]:
            raise UserError(
                f"a stream that began with {self._codes.shape[1]} codes a frame got "
                f"{codes.shape[1]}: push the same streams every time"
            )
        else:
            self._codes = np.concatenate([self._codes, codes])
        ready = self._first + len(self._codes) - self._block - self._reach
        parts = [np.zeros(0, np.float32)]
        while self._start <= ready:
            parts.append(self._next())
        return np.concatenate(parts)

    def finish(self) -> np.ndarray:
        """See `CodecStream.finish`."""
        self._open()
        self._finished = True
        parts = [np.zeros(0, np.float32)]
        if self._codes is not None:
            samples = (self._first + len(self._codes)) * self._hop
            while (left := samples - self._samples) > 0:
                parts.append(self._next()[:left])
        return np.concatenate(parts)

    def _open(self) -> None:
        if self._finished:
            raise RuntimeError("this stream is finished; start another one for another message")

    def _next(self) -> np.ndarray:
        stop = self._start + self._block + self._reach - self._first
        wav = self._step(self._codes[:stop], self._start - self._first)
        self._samples += len(wav)
        self._start += self._block
        done = max(self._start - self._reach, 0) - self._first
        self._codes = self._codes[done:]
        self._first += done
        return wav
