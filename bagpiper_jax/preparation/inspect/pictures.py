"""Pictures of lengths, and of packed rows: segments, streams in colour, mel windows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bagpiper_jax.html_report.media import GRID, INK, new_figure, png
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.log_mel import TOKENS_PER_WINDOW
from bagpiper_jax.vocab import Vocabulary

# Okabe and Ito's colours: told apart by everyone, on white and on black
ORANGE, GREEN, PINK, RED, SKY = (
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
)
EMPTY, MARKER, TEXT, CODE, CODE_PAD, HEARD = range(6)
KIND_COLORS = {MARKER: PINK, TEXT: SKY, CODE: ORANGE, CODE_PAD: RED, HEARD: GREEN}
KIND_NAMES = {
    MARKER: "marker",
    TEXT: "text",
    CODE: "codec code",
    CODE_PAD: "codec pad",
    HEARD: "heard audio",
}
TASK_COLORS = {
    "text_to_audio": ORANGE,
    "audio_to_text": GREEN,
    "text_only": SKY,
    "dialogue": PINK,
}
SEGMENTS = (SKY, ORANGE, GREEN, PINK, RED)  # black is read on all of them
_COLUMNS = 1400  # of a picture, about its pixels
_NO_LOSS = 0.4


def histogram(values: Mapping[str, np.ndarray], unit: str) -> str:
    """Histogram of lengths by task, or of one thing under another name; zeros are left out.

    Where a few are far longer than all others, the last bin holds them too.
    """
    values = {name: found[found > 0] for name, found in values.items()}
    values = {name: found for name, found in values.items() if len(found)}
    largest = max(float(found.max()) for found in values.values())
    usual = max(float(np.percentile(found, 99.5)) for found in values.values())
    if largest > 1.5 * usual:
        unit += f" (longer ones, up to {largest:,.0f}, in the last bin)"
        largest = usual
    edges = np.linspace(0, np.ceil(largest), 41)
    figure, (axis,) = new_figure(5.4, 2.6, 1)
    for name, found in values.items():
        counts, _ = np.histogram(np.minimum(found, edges[-1]), edges)
        color = TASK_COLORS.get(name, SKY)
        axis.stairs(counts, edges, color=color, lw=1.6, label=name)
        axis.stairs(counts, edges, color=color, alpha=0.18, fill=True)
    axis.set_xlabel(unit)
    axis.set_ylabel("records")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_xlim(0, edges[-1])
    axis.grid(color=GRID, lw=0.6)
    if len(values) > 1 or next(iter(values)) in TASK_COLORS:
        axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    return png(figure)


def kinds_of(row: Batch, vocab: Vocabulary) -> np.ndarray:
    """What each position of each stream holds, of EMPTY … HEARD, uint8 [T, K]."""
    tokens = row.tokens
    kinds = np.full(tokens.shape, EMPTY, np.uint8)
    kinds[(tokens > 0) & (tokens < vocab.text_start)] = MARKER
    kinds[(tokens >= vocab.text_start) & (tokens < vocab.codec_start)] = TEXT
    kinds[tokens >= vocab.codec_start] = CODE
    kinds[tokens == vocab.stream_pads] = CODE_PAD
    kinds[row.audio_index >= 0, 0] = HEARD
    return kinds


def row_picture(row: Batch, vocab: Vocabulary) -> str:
    """A packed row: its segments, the streams (pale where there is no loss), its mel windows."""
    length, streams = row.tokens.shape
    windows = len(row.mel_frames) if row.mel_frames.any() else 0
    heights = (0.26, 0.13 * streams, 0.2, 0.75) if windows else (0.26, 0.13 * streams)
    figure, axes = new_figure(11, 0.6 + sum(heights) + 0.1 * len(heights), len(heights),
                              height_ratios=heights)  # fmt: skip
    at = np.linspace(0, length - 1, min(length, _COLUMNS)).round().astype(int)
    image = kind_image(kinds_of(row, vocab)[at], row.loss_mask[at])
    _strip(axes[0], row.segment_ids, "segments")
    axes[1].imshow(
        image.transpose(1, 0, 2), aspect="auto", extent=(0, length, streams - 0.5, -0.5),
        interpolation="nearest",
    )  # fmt: skip
    axes[1].set_yticks(range(streams))
    axes[1].set_ylabel("stream")
    axes[1].set_xlabel("position", labelpad=1)
    if windows:
        _strip(axes[2], window_segments(row), "windows")
        _mel(axes[3], row)
    return png(figure)


def kind_image(kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Colours of kinds [T, K], pale where no loss counts, float [T, K, 4]."""
    from matplotlib.colors import to_rgba

    palette = np.zeros((len(KIND_COLORS) + 1, 4))
    for kind, color in KIND_COLORS.items():
        palette[kind] = to_rgba(color)
    image = palette[kinds]
    image[..., 3] *= np.where(counts, 1.0, _NO_LOSS)
    return image


def window_segments(row: Batch) -> np.ndarray:
    """The segment to which each mel window belongs, 0 for none, int [W]."""
    owners = np.zeros(len(row.mel_frames), int)
    heard = row.audio_index >= 0
    owners[row.audio_index[heard] // TOKENS_PER_WINDOW] = row.segment_ids[heard]
    return owners


def _strip(axis, ids: np.ndarray, name: str) -> None:
    """Runs of equal ids as blocks with their number."""
    edges = np.flatnonzero(np.diff(ids, prepend=-1, append=-1))
    for start, stop in zip(edges, edges[1:]):
        number = int(ids[start])
        if number:
            color = segment_color(number)
            axis.barh(0, stop - start, left=start, height=1, color=color, edgecolor=INK, lw=0.6)
            if (stop - start) / len(ids) > 0.012:
                axis.text(
                    (start + stop) / 2, 0, str(number), ha="center", va="center", fontsize=7,
                    color="black",
                )  # fmt: skip
    axis.set_xlim(0, len(ids))
    axis.set_ylim(-0.5, 0.5)
    axis.set_xticks([])
    axis.set_yticks([0], [name])


def segment_color(number: int) -> str:
    """The colour of a segment, from 1."""
    return SEGMENTS[(number - 1) % len(SEGMENTS)]


def _mel(axis, row: Batch) -> None:
    """The mel windows side by side; what no clip fills has no colour."""
    windows, frames, mels = row.mel.shape
    valid = np.arange(frames)[None] < row.mel_frames[:, None]
    pixels = np.where(valid[..., None], row.mel, np.nan).reshape(-1, mels)
    at = np.linspace(0, len(pixels) - 1, min(len(pixels), _COLUMNS)).round().astype(int)
    axis.imshow(
        pixels[at].T, origin="lower", aspect="auto", cmap="magma", extent=(0, windows, 0, mels),
        interpolation="nearest",
    )  # fmt: skip
    axis.set_yticks([])
    axis.set_ylabel("log-mel")
    axis.set_xlabel("mel window (1 s)", labelpad=1)
