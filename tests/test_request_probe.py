"""Requests: performers that are right, mute, or answer another request."""

import numpy as np
import pytest
from probe_oracle import SEED, Ears, Oracle, tone_corpus

from bagpiper_jax.conversation import Message
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.rendering_probe import spoken_scenes
from bagpiper_jax.evaluation.request_probe import request_probe
from bagpiper_jax.evaluation.text_metrics import Errors, count_errors
from bagpiper_jax.input_pipeline.scenes import request

COUNTS = {"digits": 6, "letters": 3}
SILENT = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def corpus():
    return tone_corpus()


@pytest.fixture(scope="module")
def oracle(corpus):
    return Oracle(corpus, splits=("test_a",))


@pytest.fixture(scope="module")
def spoken(corpus):
    found = spoken_scenes(corpus, "test_a", COUNTS, SEED)
    assert len({s.text for s in found}) == len({request(s.scene) for s in found}) == len(found)
    return found


class Performer:
    """Answers with the caption and the sound known for a request, without those that are empty."""

    def __init__(self, answers):
        self.answers = answers

    def chat_batch(self, conversations, *, modalities=None, sampling=None, seed=0):
        for (wish,) in conversations:
            assert (wish.role, wish.modality) == ("user", "text")
        return [self.messages(*self.answers[wish.content]) for (wish,) in conversations]

    def messages(self, caption, wav):
        said = [("text", caption)] if caption else []
        heard = [("audio", wav)] if len(wav) else []
        return [Message("assistant", *content) for content in said + heard]

    def play(self, message):
        assert message.modality == "audio"
        return message.content


def neighbours(spoken, step):
    """For each scene the one `step` further on among those of its kind."""
    for s in spoken:
        kind = [other for other in spoken if other.kind == s.kind]
        yield kind[(kind.index(s) + step) % len(kind)]


def rates_against(spoken, others):
    """Word error rate of each kind where the words of others are heard."""
    sums = dict.fromkeys(COUNTS, Errors())
    for s, other in zip(spoken, others, strict=True):
        sums[s.kind] += count_errors(s.text.split(), other.text.split())
    return {kind: errors.rate for kind, errors in sums.items()}


def values(rates):
    return {kind: rate.value for kind, rate in rates.items()}


def perform(corpus, oracle, spoken, answers):
    performer = Performer(dict(zip((request(s.scene) for s in spoken), answers, strict=True)))
    options = {"split": "test_a", "counts": COUNTS, "seed": SEED}
    return request_probe(performer, corpus, Ears(oracle), oracle.sampling, **options)


def right(oracle, scenes):
    return [(s.scene.caption, oracle.wavs[s.scene.caption]) for s in scenes]


def test_what_was_asked_for_has_no_errors_and_what_another_asked_for_has_its_own(
    corpus, oracle, spoken
):
    figures, items, wavs = perform(corpus, oracle, spoken, right(oracle, spoken))
    assert values(figures["wer"]) == dict.fromkeys(COUNTS, 0)
    chance = rates_against(spoken, neighbours(spoken, 1))
    assert values(figures["control"]["wer"]) == pytest.approx(chance) and min(chance.values()) > 0.6
    assert figures["captioned"].value == figures["caption_right"].value == 1
    assert [item["kind"] for item in items] == ["digits"] * 6 + ["letters"] * 3
    assert [item["output"] for item in items] == [s.scene.caption for s in spoken]
    assert [len(wav) for wav in wavs] == [len(oracle.wavs[s.scene.caption]) for s in spoken]


def test_the_mute_miss_every_word_and_their_captions_are_right_all_the_same(corpus, oracle, spoken):
    answers = [(s.scene.caption, SILENT) for s in spoken]
    figures, items, _ = perform(corpus, oracle, spoken, answers)
    assert values(figures["wer"]) == values(figures["control"]["wer"]) == dict.fromkeys(COUNTS, 1)
    assert figures["captioned"].value == figures["caption_right"].value == 1
    assert {item["seconds"] for item in items} == {0}


def test_a_wrong_caption_rendered_is_wrong_in_both(corpus, oracle, spoken):
    others = list(neighbours(spoken, -1))
    figures, _, _ = perform(corpus, oracle, spoken, right(oracle, others))
    expected = rates_against(spoken, others)
    assert values(figures["wer"]) == pytest.approx(expected) and min(expected.values()) > 0.6
    # the control hears the next answer, which is the one that was asked for here
    assert values(figures["control"]["wer"]) == dict.fromkeys(COUNTS, 0)
    assert (figures["captioned"].value, figures["caption_right"].value) == (1, 0)


def test_captions_are_counted_apart_from_the_sound(corpus, oracle, spoken):
    """Two right captions, one wrong, none elsewhere; all sounds are right."""
    wavs = [oracle.wavs[s.scene.caption] for s in spoken]
    captions = [s.scene.caption for s in spoken[:2]] + [spoken[0].scene.caption] + [""] * 6
    figures, items, _ = perform(corpus, oracle, spoken, zip(captions, wavs, strict=True))
    assert values(figures["wer"]) == dict.fromkeys(COUNTS, 0)
    assert figures["captioned"].value == pytest.approx(3 / 9)
    assert figures["caption_right"].value == pytest.approx(2 / 3)
    assert figures["caption_right"].count == 3
    assert [item.get("caption_right") for item in items] == [True, True, False] + [None] * 6
    figures, _, _ = perform(corpus, oracle, spoken, [("", wav) for wav in wavs])
    assert figures["captioned"].value == 0 and "caption_right" not in figures


def test_one_request_has_no_control_and_is_told(corpus):
    with pytest.raises(UserError, match="two requests with different words"):
        request_probe(None, corpus, None, {}, split="test_a", counts={"digits": 1}, seed=SEED)
