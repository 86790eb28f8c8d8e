"""Scenes → packed rows with random access: the order of training is a pure function.

Lengths are known from a scene's plan, before any sample of audio is made. So rows are planned in
windows: each window draws examples until every task has its share of tokens, packs them first-fit
by falling size, and shuffles its rows. Row i of a run is a function of (seed, i) alone, the same
on any number of workers, and the state to resume from is the number of rows read.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from bagpiper_jax.conversation import (
    Example,
    Message,
    drop_condition,
    encode_conversation,
)
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch, pack_row
from bagpiper_jax.input_pipeline.mixture import DEFAULT_MIXTURE
from bagpiper_jax.input_pipeline.packing import RowShape, by_falling_size, first_fit
from bagpiper_jax.input_pipeline.records import conversation_size
from bagpiper_jax.input_pipeline.scenes import (
    TASKS,
    Corpus,
    Scene,
    plan_scene,
    render_scene,
    turns,
)
from bagpiper_jax.input_pipeline.scenes.scene import (
    LISTS_SAID_ALONE,
    full_captions,
    generator,
    world_of,
)
from bagpiper_jax.input_pipeline.scenes.tasks import DIALOGUES, Turn
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.tokenizer import Tokenizer

_WINDOW_ROWS = 64  # not those of `row_plan`: _DRAWN fits them, and the order of scenes follows
_SCENES_PER_WINDOW = 1 << 20  # scene numbers of different windows never meet
# Examples are drawn for so much of a window: for more than all rows but one, so that none stays
# empty. Nearly all of them find room; of a fuller draw the short ones would be left out, and the
# mixture with them.
_DRAWN = 0.985


@functools.cache
def load_corpus(directory: str) -> Corpus:
    """The corpus, decoded once per process."""
    return Corpus.load(directory)


@dataclasses.dataclass(frozen=True)
class Planned:
    """An example whose size is known and whose audio is not made yet."""

    task: str
    scene: Scene
    rows: int
    windows: int


class PackedScenes:
    """A random-access source of packed rows (`Batch` without its leading axis) for Grain."""

    def __init__(
        self,
        corpus_dir: str,
        config: BagpiperConfig,
        tokenizer: Tokenizer,
        codec: Codec,
        *,
        shape: RowShape,
        num_rows: int,
        seed: int,
        split: str = "train",
        profile: str = "mixed",
        mixture: dict[str, float] | None = None,
        cfg_dropout: float = 0.05,
    ):
        """Plans nothing yet.

        Args:
          corpus_dir: directory of the mini corpus.
          config: the model's, for ids and encoder blocks.
          tokenizer: text ↔ ids.
          codec: waveform → codes.
          shape: sizes of a packed row.
          num_rows: rows of an epoch; scenes never repeat, so this is a choice.
          seed: of the scenes, their order and CFG dropout.
          split: of the scenes.
          profile: of the scenes.
          mixture: share of tokens by task; DEFAULT_MIXTURE if None.
          cfg_dropout: chance that an example with assistant audio loses its condition.

        Raises:
          ValueError: an unknown task in the mixture, or dialogues about captions that are lists.
        """
        mixture = mixture or DEFAULT_MIXTURE
        if set(mixture) - set(TASKS):
            raise ValueError(f"tasks {sorted(set(mixture) - set(TASKS))} are none of {TASKS}")
        self._corpus_dir = corpus_dir
        self._config = config
        self._tokenizer = tokenizer
        self._codec = codec
        self._shape = shape
        self._num_rows = num_rows
        self._seed = seed
        self._split = split
        self._profile = profile
        # the order of a config's keys must not number the scenes
        self._shares = {
            t: mixture[t] / sum(mixture.values()) for t in sorted(mixture) if mixture[t] > 0
        }
        if set(self._shares) & set(DIALOGUES) and not full_captions(profile):
            raise ValueError(f"of the profile {profile!r} nothing can be asked")
        self._cfg_dropout = cfg_dropout
        self._plan = functools.lru_cache(maxsize=2)(self._plan_window)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_plan"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._plan = functools.lru_cache(maxsize=2)(self._plan_window)

    def __len__(self) -> int:
        return self._num_rows

    def __repr__(self) -> str:  # Grain compares and prints sources
        return f"PackedScenes(seed={self._seed}, split={self._split}, rows={self._num_rows})"

    def __getitem__(self, row: int) -> Batch:
        window, slot = divmod(int(row), _WINDOW_ROWS)
        examples = [self.example(planned) for planned in self._plan(window)[slot]]
        block = self._config.encoder.block_windows
        return pack_row(examples, self._shape.length, self._shape.windows, block)

    def planned_row(self, row: int) -> list[Planned]:
        """What row `row` will hold."""
        window, slot = divmod(int(row), _WINDOW_ROWS)
        return self._plan(window)[slot]

    def plan_example(self, task: str, number: int) -> Planned:
        """Sizes of an example from its scene's plan."""
        corpus = load_corpus(self._corpus_dir)
        scene = plan_scene(corpus, self._seed, number, self._split, self._profile)
        samples = scene.num_samples
        lengths = {"assistant": -(-samples // self._codec.hop), "user": samples}
        contents = (
            (turn.role, lengths[turn.role] if turn.text is None else turn.text)
            for turn in self._turns(task, scene)
        )
        return Planned(task, scene, *conversation_size(contents, self._config, self._tokenizer))

    def example(self, planned: Planned) -> Example:
        """Makes the audio and lays the example out."""
        scene = planned.scene
        messages = []
        for turn in self._turns(planned.task, scene):
            content: Any = turn.text
            if content is None:
                wav = render_scene(load_corpus(self._corpus_dir), scene)
                content = self._codec.encode(wav) if turn.role == "assistant" else mel_windows(wav)
            messages.append(Message(turn.role, turn.modality, content))
        example = encode_conversation(messages, self._config.vocab, self._tokenizer)
        if example.cfg_span is not None:
            chance = generator("cfg_dropout", self._seed, scene.index).random()
            if chance < self._cfg_dropout:
                example = drop_condition(example)
        return example

    def _turns(self, task: str, scene: Scene) -> list[Turn]:
        labels = load_corpus(self._corpus_dir).labels["train", "sound"]
        return turns(task, scene, labels)

    def _plan_window(self, window: int) -> list[list[Planned]]:
        budget = _DRAWN * _WINDOW_ROWS * self._shape.length
        examples = []
        number = window * _SCENES_PER_WINDOW
        for task, share in self._shares.items():
            left = share * budget
            # of a caption that is a mere list nothing can be asked
            needs_whole = task in DIALOGUES or (
                task == "audio_to_text" and self._profile in LISTS_SAID_ALONE
            )
            while left > 0:
                while needs_whole and world_of(self._profile, number).terse:
                    number += 1
                planned = self.plan_example(task, number)
                number += 1
                left -= planned.rows
                if planned.rows <= self._shape.length and planned.windows <= self._shape.windows:
                    examples.append(planned)
        rows = _packed(examples, self._shape)
        if not all(rows):
            raise UserError(
                f"most scenes do not fit rows of {self._shape.length} positions and "
                f"{self._shape.windows} mel windows: raise data.length or data.windows"
            )
        order = generator("row_order", self._seed, window).permutation(len(rows))
        return [rows[i] for i in order]


def _packed(examples: list[Planned], shape: RowShape) -> list[list[Planned]]:
    """The rows of a window; what does not fit is left out."""
    rows = np.array([e.rows for e in examples])
    windows = np.array([e.windows for e in examples])
    order = by_falling_size(rows, windows, shape)
    packed: list[list[Planned]] = [[] for _ in range(_WINDOW_ROWS)]
    for example, row in zip(order, first_fit(rows[order], windows[order], _WINDOW_ROWS, shape)):
        if row >= 0:
            packed[row].append(examples[example])
    return packed
