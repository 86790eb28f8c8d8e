"""Quoted speech: found in captions, and kept word for word by requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax.simulation.quotes import (
    broken_quotes,
    lines_of,
    quotes,
    spoken_lines,
    without_quotes,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('He says "Go on" and "stop".', ["Go on", "stop"]),
        ("He says “Go on, it’s late” now.", ["Go on, it’s late"]),
        ("He says 'I don't know, it's the dogs' turn, mate' now.", ["I don't know, it's the dogs"]),
        ("He says, 'I can't, don't ask,' softly.", ["I can't, don't ask,"]),
        ("‘We’ll be younger.’ Then silence.", ["We’ll be younger."]),
        ("The singer's voice isn't the boys' voice.", []),
        # single quotes are terms where there are double ones
        ("A 'dreamy' voice says \"Hello\".", ["Hello"]),
        ('Sings "intha veedu" ("this house") twice.', ["intha veedu"]),
        ("Nothing.", []),
    ],
)
def test_quotes_of_a_text(text, found):
    assert quotes(text) == found


def test_lines_are_speech_and_each_stands_once():
    caption = (
        'A man says "Get the starter going." The engine is "chugging"; he repeats "the starter". '
        'A crowd shouts "Whoa!" and someone, "you guys are the best". Again: "Whoa!"'
    )
    assert spoken_lines(caption) == [
        "Get the starter going.",
        "Whoa!",
        "you guys are the best",
    ]


def test_transcripts_come_before_quotes():
    caption = (
        "A 'big' scene. The speech transcription of the audio is: \"Turn off the fan!\", and it's "
        'corresponding phonetic transcription is: "T ER1 N AO1 F", and so on.'
    )
    assert lines_of({}, caption) == ["Turn off the fan!"]
    rich = {"transcript": [{"text": "One."}, {"text": "…"}, {"text": "Two."}]}
    assert lines_of({"rich": rich}, caption) == ["One.", "Two."]
    assert lines_of({}, 'She says "Now then."') == ["Now then."]


LINES = ["Get the starter going and let’s see.", "Whoa!"]


@pytest.mark.parametrize(
    "request_text",
    [
        "A man says 'Get the starter going and let's see,' then 'Whoa!'",
        "A man: “get the starter going — and let’s see!” … “WHOA”",
        'He says "Get the starter going and let\'s see. Whoa!"',
        'First "Get the starter going," and on: "and let’s see. Whoa."',
    ],
)
def test_form_does_not_matter(request_text):
    assert broken_quotes(request_text, LINES) == []


@pytest.mark.parametrize(
    ("request_text", "reasons"),
    [
        ("He says 'Get the starter running and let's see,' 'Whoa!'", 2),
        ("He says 'Get the starter going and let's see.'", 1),
        ("He says get the starter going and let's see, whoa!", 2),
        ("'Get the starter going and let's see', 'Whoa', 'and good night'", 1),
        ("'Get the the starter going and let's see', 'Whoa'", 2),
    ],
)
def test_words_do_matter(request_text, reasons):
    assert len(broken_quotes(request_text, LINES)) == reasons


def test_silence_is_not_quoted():
    assert broken_quotes("A quiet room.", []) == []
    assert broken_quotes('A voice says "hello you".', [])


words = st.lists(st.sampled_from("one two three isn't Ärger 42 it's".split()), min_size=1)


@given(st.lists(words, min_size=1, max_size=4), st.sampled_from(['"{}"', "“{}”"]), st.data())
def test_any_speech_that_is_quoted_whole_is_kept_and_any_word_less_is_seen(lines, form, data):
    texts = [" ".join(line) for line in lines]
    request = "Please say " + " and then ".join(form.format(text) for text in texts)
    assert broken_quotes(request, texts) == []
    assert without_quotes(request).split() == (
        ["Please", "say"] + ["and", "then"] * (len(texts) - 1)
    )
    i = data.draw(st.integers(0, len(texts) - 1))
    changed = [*texts[:i], texts[i] + " intruder", *texts[i + 1 :]]
    request = "Please say " + " and then ".join(form.format(text) for text in changed)
    assert broken_quotes(request, texts)


def test_words():
    assert words_of("It’s ‘Fine’ — really, 3 TIMES!") == ["it's", "fine", "really", "3", "times"]
