"""Cycle consistency on a made-up corpus, with pipelines that keep, forget and break captions."""

import re
import zlib

import numpy as np
import pytest
from probe_oracle import SEED, Oracle, tone_corpus

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.cycle_probe import cycle_probe
from bagpiper_jax.evaluation.tables import rows_of
from bagpiper_jax.evaluation.workdir import to_json
from bagpiper_jax.inference.sampling import AUDIO, TEXT

SAMPLING = {"text": TEXT, "audio": AUDIO}


class BagOfWords:
    """Counts of words, hashed: 1 for texts of the same words, near 0 for ones without any."""

    name = "bag of words"

    def __call__(self, texts):
        out = np.zeros((len(texts), 512))
        for row, text in zip(out, texts):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                row[zlib.crc32(word.encode()) % 512] += 1
        return out / np.linalg.norm(out, axis=1, keepdims=True)


class Scripted(Oracle):
    """Clips that stand for what a script makes of each caption: its own audio at first."""

    def __init__(self, corpus, change, **options):
        super().__init__(corpus, **options)
        self.change, self.stored = change, []

    def describe_batch(self, wavs, *, sampling, seed=0):
        texts = []
        for wav in wavs:
            known = self.captions.get(wav.tobytes())
            texts.append(known if known is not None else self.change(self.stored[int(wav[0])]))
        return texts

    def render_batch(self, texts, *, sampling, seed=0):
        out = []
        for text in texts:
            self.stored.append(text)
            out.append(np.full(1600, len(self.stored) - 1, np.float32))
        return out


@pytest.fixture(scope="module")
def corpus():
    return tone_corpus()


def cycle(pipe, corpus, **options):
    options = {"split": "dev", "count": 20, "seed": SEED, **options}
    return cycle_probe(pipe, corpus, BagOfWords(), SAMPLING, **options)


def intervals(tree):
    if hasattr(tree, "low"):
        yield tree
    elif isinstance(tree, (dict, list)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from intervals(part)


@pytest.mark.parametrize("start", ["audio", "caption"])
def test_a_pipeline_that_knows_the_scenes_neither_errs_nor_drifts(corpus, start):
    figures, items, clips = cycle(Oracle(corpus, splits=("dev",)), corpus, start=start)
    assert len(figures["rounds"]) == 3 and "drift" not in figures["rounds"][0]
    shown = [row for row in rows_of("cycle", to_json(figures)) if row.path[0] == "rounds"]
    assert len({row.label for row in shown}) == len(shown) and all(row.control for row in shown)
    for number, part in enumerate(figures["rounds"]):
        for found in [part["scene"], *([part["drift"]] if number else [])]:
            assert found["similarity"].value == found["events_f1"].value == 1
            assert found["wer"].value == 0
        control = figures["control"]["rounds"][number]
        for found in control.values():
            assert found["wer"].value > 0.6 and found["events_f1"].value < 0.8
            assert found["similarity"].value < 0.9
        assert control["scene"] == figures["chance"] and figures["empty"][number] == 0
    for item in items:
        assert item["outputs"] == [item["caption"]] * 3 and item["control"]["of"] != item["index"]
    assert [len(rounds) for rounds in clips] == [3] * 4


def test_clips_are_those_described_in_each_round(corpus):
    pipe = Scripted(corpus, lambda text: text, splits=("dev",))
    _, items, clips = cycle(pipe, corpus, keep=2)
    for item, (first, *later) in zip(items, clips):
        assert pipe.captions[first.tobytes()] == item["caption"]
        assert [pipe.stored[int(wav[0])] for wav in later] == item["outputs"][:2]


def test_a_word_forgotten_in_each_round_shows_as_drift(corpus):
    def forget(text):
        """The first word of each quote."""
        return re.sub(r'"([^"]*)"', lambda m: f'"{" ".join(m[1].split()[1:])}"', text)

    figures, items, _ = cycle(Scripted(corpus, forget, splits=("dev",)), corpus, rounds=4)
    rates = [part["drift"]["wer"].value for part in figures["rounds"][1:]]
    alike = [part["drift"]["similarity"].value for part in figures["rounds"][1:]]
    assert 0 < rates[0] < rates[1] < rates[2] and 1 > alike[0] > alike[1] > alike[2]
    assert all(part["drift"]["events_f1"].value == 1 for part in figures["rounds"][1:])
    # the first round was right, so that the scene and the first caption say the same
    assert [part["scene"]["wer"].value for part in figures["rounds"]] == [0, *rates]
    one = next(item for item in items if len(item["rounds"][0]["scene"]["quotes"]) == 1)
    errors = [part["drift"]["quotes"][0]["errors"].errors for part in one["rounds"][1:]]
    words = len(one["rounds"][0]["scene"]["quotes"][0]["truth"].split())
    assert errors == [min(number, words) for number in (1, 2, 3)]


def test_drift_from_a_wrong_caption_is_not_distance_from_the_scene(corpus):
    """From the true caption, a pipeline that is wrong once and then steady does not drift."""

    def always(text):
        return 'A woman says "nine nine". There is no noise, and there is no echo.'

    pipe = Scripted(corpus, always, splits=("dev",))
    figures, _, _ = cycle(pipe, corpus, start="caption")
    for number, part in enumerate(figures["rounds"]):
        assert part["scene"]["wer"].value > 0.6 and part["scene"]["events_f1"].value < 0.6
        control = figures["control"]["rounds"][number]
        assert part["scene"] == control["scene"]
        if number:
            assert part["drift"]["wer"].value == 0 and part["drift"]["similarity"].value == 1
            assert control["drift"] == part["drift"]  # says that it tells nothing apart


def test_a_pipeline_that_says_nothing(corpus):
    class Mute(Oracle):
        def describe_batch(self, wavs, **_):
            return [""] * len(wavs)

        def render_batch(self, texts, **_):
            raise AssertionError("there is nothing to render")

    figures, _, clips = cycle(Mute(corpus, splits=("dev",)), corpus)
    last = figures["rounds"][-1]
    assert last["scene"]["wer"].value == 1 and last["scene"]["events_f1"].value == 0
    assert set(last["drift"]) == {"similarity"} and figures["empty"][-1] == 20
    assert [len(wav) for wav in clips[0][1:]] == [0, 0]


def test_a_clip_that_ends_at_once_is_not_described(corpus):
    class Short(Oracle):
        def render_batch(self, texts, **options):
            wavs = super().render_batch(texts, **options)
            return [np.zeros(0, np.float32), *wavs[1:]]

    figures, items, _ = cycle(Short(corpus, splits=("dev",)), corpus)
    assert [item["outputs"][1] == "" for item in items] == [True] + [False] * 19
    assert figures["empty"] == [0, 1, 2]  # the next is first now


def test_intervals_hold_their_values_and_do_not_depend_on_the_run(corpus):
    def change(text):
        return text.replace("nine", "five").replace("birdsong", "rain")

    found = [cycle(Scripted(corpus, change, splits=("dev",)), corpus)[0] for _ in range(2)]
    assert found[0] == found[1]
    seen = list(intervals(found[0]))
    assert len(seen) > 20 and all(i.low <= i.value <= i.high for i in seen)


@pytest.mark.parametrize("bad", [{"count": 1}, {"rounds": 0}, {"start": "text"}])
def test_bad_arguments_are_told_before_anything_is_generated(corpus, bad):
    with pytest.raises(UserError, match="a cycle needs"):
        cycle(None, corpus, **bad)
