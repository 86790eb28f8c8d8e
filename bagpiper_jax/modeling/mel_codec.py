"""The embedded default codec: residual vector quantisation of log-mel frames, fitted by k-means.

Encoding, fitting and files need numpy and scipy only, so data workers never start an accelerator;
decoding goes through `vocoder` (JAX), imported on first use.

A frame is 128 log-mel values of a 1,024-sample window, 50 frames a second. Book 1 quantises the
frame, each further book what the books before it left (residual k-means; Juang and Gray, 1982).
Decoding adds what the codes of a frame and its neighbours tell of what the books left, a linear
filter fitted by least squares: neighbouring frames overlap, and their errors differ.
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.sparse

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.codec import BlockStream, checked_codes

SAMPLE_RATE = 16_000
HOP = 320
N_FFT = 1_024
MELS = 128
# Added to mel magnitudes before the logarithm: everything some 70 dB below loud speech
# is one floor, so no code is spent on how silent a silence is.
FLOOR = 3e-4

FORMAT = "bagpiper-mel-rvq-3"
_WITHOUT_FILTER = "bagpiper-mel-rvq-2"
REACH = 2  # frames before and after that the filter sees
LLOYD_STEPS = 20
SEED_FRAMES = 16_384


@cache
def mel_filters() -> np.ndarray:
    """Triangular filters of unit area on the Slaney mel scale: float32 [N_FFT // 2 + 1, MELS]."""
    import librosa

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=MELS).T.copy()


@cache
def _window() -> np.ndarray:
    """Periodic Hann window, float32 [N_FFT]."""
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)
    return hann.astype(np.float32)


def log_mel(wav: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """Log of mel magnitudes: float32 [S] at 16 kHz → float32 [ceil(S / 320), 128].

    Frame t is centred on sample 320 t + 160, and zeros surround the clip, so zeros appended to a
    clip leave its own frames as they were.
    """
    frames = -(-len(wav) // HOP)
    left = (N_FFT - HOP) // 2
    padded = np.zeros((frames - 1) * HOP + N_FFT, np.float32)
    padded[left : left + len(wav)] = wav
    segments = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    magnitude = np.abs(scipy.fft.rfft(segments * _window(), axis=-1))
    return np.log(magnitude @ mel_filters() + np.float32(floor))


def _nearest(points: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Index of the nearest code, float32: [N, M], [V, M] → int64 [N]."""
    half_square = 0.5 * np.einsum("vm,vm->v", book, book)
    return np.argmin(half_square - points @ book.T, axis=1)


def _seed_centers(points: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007) on a sample of the points."""
    if len(points) > SEED_FRAMES:
        points = points[rng.choice(len(points), SEED_FRAMES, replace=False)]
    square = np.einsum("nm,nm->n", points, points)
    centers = np.empty((size, points.shape[1]), np.float32)
    centers[0] = points[rng.integers(len(points))]
    distance = np.full(len(points), np.inf, np.float32)
    for i in range(1, size):
        last = centers[i - 1]
        distance = np.minimum(distance, np.maximum(square - 2.0 * points @ last + last @ last, 0.0))
        cumulative = np.cumsum(distance, dtype=np.float64)
        pick = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        centers[i] = points[min(pick, len(points) - 1)]
    return centers


def _means(points: np.ndarray, code: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each code's points, zero where it has none, float32 [size, M]; counts [size]."""
    entries = (np.ones(len(points), np.float32), code, np.arange(len(points) + 1))
    members = scipy.sparse.csr_matrix(entries, shape=(len(points), size)).T
    count = np.bincount(code, minlength=size)
    return (members @ points / np.maximum(count, 1)[:, None]).astype(np.float32), count


def kmeans(
    points: np.ndarray, size: int, rng: np.random.Generator, steps: int = LLOYD_STEPS
) -> np.ndarray:
    """Lloyd's algorithm from k-means++ seeds: float32 [N, M] → centers float32 [size, M].

    A center that loses all its points moves to one of the points farthest from their own centers.
    """
    centers = _seed_centers(points, size, rng)
    for _ in range(steps):
        code = _nearest(points, centers)
        means, count = _means(points, code, size)
        dead = np.flatnonzero(count == 0)
        if len(dead):
            error = np.square(points - centers[code]).sum(1)
            means[dead] = points[np.argsort(-error, kind="stable")[: len(dead)]]
        if np.array_equal(means, centers):
            break
        centers = means
    return centers


def _neighbours(frames: np.ndarray) -> np.ndarray:
    """Each frame with REACH before and after it: [T + 2 REACH, M] → [T, (2 REACH + 1) M]."""
    count = len(frames) - 2 * REACH
    return np.concatenate([frames[i : i + count] for i in range(2 * REACH + 1)], axis=1)


def _checked(wav: np.ndarray) -> np.ndarray:
    wav = np.asarray(wav)
    if wav.ndim != 1 or wav.size == 0 or not np.issubdtype(wav.dtype, np.floating):
        raise UserError(
            f"the codec needs a non-empty mono clip of floats in [-1, 1], shape [samples]; "
            f"got {wav.dtype} of shape {wav.shape}"
        )
    wav = wav.astype(np.float32, copy=False)
    if not np.isfinite(wav).all():
        raise UserError("the clip has NaN or infinite samples; mend or drop it before encoding")
    return wav


class MelCodec:
    """Log-mel residual vector quantiser with a Griffin-Lim vocoder; see `codec.Codec`.

    Attributes:
        books: float16 [K, V, 128], in normalised log-mel units.
        mean: float32 [128], the log-mel mean over the fitting audio.
        scale: float32 [128], one normalised unit in log-mel units (nepers), per bin.
        floor: float32 [], added to mel magnitudes before the logarithm.
        filter: float16 [2 · REACH + 1, 128, 128], what is added to a frame for each of its
            neighbours, in normalised units; None for nothing.
    """

    sample_rate = SAMPLE_RATE
    hop = HOP
    frame_rate = SAMPLE_RATE / HOP

    def __init__(
        self,
        books: np.ndarray,
        mean: np.ndarray,
        scale: np.ndarray,
        floor: float = FLOOR,
        filter: np.ndarray | None = None,
    ):
        self.books = np.asarray(books, np.float16)
        self.mean = np.asarray(mean, np.float32)
        self.scale = np.asarray(scale, np.float32)
        self.floor = np.float32(floor)
        self.filter = None if filter is None else np.asarray(filter, np.float16)
        self._books = self.books.astype(np.float32)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.books.shape[1],) * self.books.shape[0]

    @classmethod
    def fit(
        cls,
        wavs: Iterable[np.ndarray],
        *,
        num_books: int = 8,
        codebook_size: int = 256,
        seed: int = 0,
        gain_db: float = 6.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> "MelCodec":
        """Fits the books on mono 16 kHz clips; the same clips and seed give the same codec.

        Fit on what the model will hear (rendered scenes with their gains, say). Holds all frames in
        memory, 92 MB an hour; about 20 CPU seconds for 15 minutes of audio and 8 x 256 codes.

        Args:
            wavs: float [S] clips in [-1, 1].
            gain_db: each clip is heard at a random gain of up to this many decibels either way, so
                that the books also fit voices somewhat louder or softer than the clips.
            progress: called as `progress(books done, num_books)`.

        Raises:
            UserError: a clip is empty or not finite, or there are fewer frames than codes.
        """
        rng = np.random.default_rng(seed)
        features = []
        for wav in wavs:
            gain = np.float32(10.0 ** (rng.uniform(-gain_db, gain_db) / 20.0))
            features.append(log_mel(gain * _checked(wav)))
        frames = sum(map(len, features))
        if frames < codebook_size:
            raise UserError(
                f"{frames} frames are too few to fit {codebook_size} codes; give more audio "
                f"(50 frames a second) or a smaller codebook_size"
            )
        points = np.concatenate(features)
        mean = points.mean(0, dtype=np.float64).astype(np.float32)
        scale = np.full(MELS, max(float((points - mean).std()), 1e-3), np.float32)
        residual = (points - mean) / scale
        books = np.empty((num_books, codebook_size, MELS), np.float16)
        for k in range(num_books):
            books[k] = kmeans(residual, codebook_size, rng)
            book = books[k].astype(np.float32)
            residual -= book[_nearest(residual, book)]
            if progress is not None:
                progress(k + 1, num_books)
        codec = cls(books, mean, scale)
        codec.fit_filter(features)
        return codec

    def fit_filter(self, features: Iterable[np.ndarray], ridge: float = 1e-4) -> None:
        """Fits the filter to clips' log-mel frames, float32 [T, 128] each; the codes stay.

        Args:
            features: of `log_mel`.
            ridge: weight of the filter's square, per frame.
        """
        size = (2 * REACH + 1) * MELS
        square, product, frames = np.zeros((size, size)), np.zeros((size, MELS)), 0
        for clip in features:
            target = (clip - self.mean) / self.scale
            found = self._sum(self._quantize(target))
            seen = _neighbours(np.pad(found, ((REACH, REACH), (0, 0)), mode="edge"))
            square += seen.T @ seen
            product += seen.T @ (target - found)
            frames += len(clip)
        square += ridge * frames * np.eye(size)
        self.filter = np.linalg.solve(square, product).reshape(-1, MELS, MELS).astype(np.float16)

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """Codes of one clip: float [S] → int32 [ceil(S / 320), K].

        Raises:
            UserError: the clip is empty, not mono, not of a float type, or not finite.
        """
        return self._quantize((log_mel(_checked(wav), self.floor) - self.mean) / self.scale)

    def _quantize(self, normalised: np.ndarray) -> np.ndarray:
        residual = normalised.copy()
        codes = np.empty((len(residual), len(self._books)), np.int32)
        for k, book in enumerate(self._books):
            codes[:, k] = _nearest(residual, book)
            residual -= book[codes[:, k]]
        return codes

    def _sum(self, codes: np.ndarray) -> np.ndarray:
        normalised = np.zeros((len(codes), MELS), np.float32)
        for k in range(codes.shape[1]):
            normalised += self._books[k][codes[:, k]]
        return normalised

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Log-mel frames that the codes stand for: int [T, K'] → float32 [T, 128].

        K' ≤ K: leaving out the last streams gives a coarser spectrum, without the filter.

        Raises:
            UserError: a wrong shape or type, or a code outside [0, codebook size).
        """
        codes = checked_codes(codes, self.codebook_sizes)
        if not len(codes):
            return np.zeros((0, MELS), np.float32)
        ends = ((REACH, REACH), (0, 0))
        return self._log_mel(np.pad(codes, ends, mode="edge"))

    def _log_mel(self, codes: np.ndarray) -> np.ndarray:
        """Codes with REACH frames before and after → log-mel: [T + 2 REACH, K'] → [T, 128]."""
        found = self._sum(codes)
        normalised = found[REACH:-REACH]
        if self.filter is not None and codes.shape[1] == len(self.books):
            weights = self.filter.astype(np.float32).reshape(-1, MELS)
            normalised = normalised + _neighbours(found) @ weights
        return normalised * self.scale + self.mean

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Waveform of one clip: int [T, K'] → float32 [T * 320] in [-1, 1]; see `dequantize`.

        It is what `stream` gives, pushed at once.
        """
        stream = self.stream()
        return np.concatenate([stream.push(codes), stream.finish()])

    def stream(self) -> BlockStream:
        """A `codec.CodecStream`, whose samples are those of `decode` exactly.

        The first sound comes with frame 10; later on, a sample waits for 13 frames at most.
        """
        from bagpiper_jax.modeling import vocoder

        synthesis = vocoder.Synthesis(mel_filters(), n_fft=N_FFT, hop=HOP)
        block = vocoder.BLOCK
        around = np.arange(-REACH, block + REACH)

        def step(frames: np.ndarray, at: int) -> np.ndarray:
            count = min(max(len(frames) - at, 0), block)
            if not count:
                return synthesis.push(np.zeros((0, MELS), np.float32))
            # beyond the message's ends, the frames there
            found = self._log_mel(frames[np.clip(at + around, 0, len(frames) - 1)])
            # what lies under the floor is silence
            return synthesis.push(np.maximum(np.exp(found) - self.floor, 0.0)[:count])

        def check(codes: np.ndarray) -> np.ndarray:
            return checked_codes(codes, self.codebook_sizes)

        return BlockStream(step, check, hop=HOP, block=block, reach=REACH)

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` file; `load` gives back the same codec exactly."""
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                format=FORMAT,
                books=self.books,
                mean=self.mean,
                scale=self.scale,
                floor=self.floor,
                filter=np.zeros(0, np.float16) if self.filter is None else self.filter,
            )

    @classmethod
    def load(cls, path: str | Path) -> "MelCodec":
        """Reads what `save` wrote.

        Raises:
            UserError: the file is missing, truncated, or not a codec of this format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                form, *parts = (file[n] for n in ("format", "books", "mean", "scale", "floor"))
                added = file["filter"] if str(form) == FORMAT else np.zeros(0, np.float16)
        except FileNotFoundError:
            raise UserError(f"{path}: no such codec file") from None
        except Exception as error:  # NumPy, zipfile and zlib raise a dozen kinds on damaged bytes
            raise UserError(
                f"{path}: not a readable codec file ({type(error).__name__}); fit and save it again"
            ) from None
        if str(form) not in (FORMAT, _WITHOUT_FILTER):
            raise UserError(f"{path}: codec format {form} is not {FORMAT}; fit it again")
        books, mean, scale, floor = parts
        shapes = books.shape[2:] == mean.shape == scale.shape == (MELS,) and floor.shape == ()
        shapes &= added.shape in ((0,), (2 * REACH + 1, MELS, MELS))
        sound = all(p.dtype.kind == "f" and np.isfinite(p).all() for p in (*parts, added))
        if not shapes or not sound:
            raise UserError(f"{path}: the codec's arrays are damaged; fit and save it again")
        return cls(books, mean, scale, floor, added if added.size else None)
