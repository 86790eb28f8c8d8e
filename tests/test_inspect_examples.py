"""Cards of records: what is wrong with one, and what is said of when things happen."""

import json

import numpy as np
from page_reader import Page
from sound_sources import encoded, sound

from bagpiper_jax.html_report.media import Span, in_lanes
from bagpiper_jax.input_pipeline.records import Clip, Record
from bagpiper_jax.preparation.inspect.examples import Room, examples_section, texts_of_clips
from bagpiper_jax.preparation.inspect.times import provenance_times, stated_times


def test_times_that_texts_state():
    spans = stated_times(
        [
            "S1 speaks from 2.12s to 6.33s.S2 speaks from 6.34s to 10.15s.\nIn the emotion, the "
            "audio shows calm from 2.12s to 6.33s, dry from 6.34s to 10.15s.\nThe result shows "
            "that the audio has speech from 2.12s to 10.15s.",
            'A jingle (00:01–00:02), then a thud at 00:08; the word "Icy" is primary stress at '
            "1.75s. From 10 to 12 people speak, at 5 sides; backwards from 4s to 3s.",
            "S1 speaks from 2.12s to 6.33s.",
        ]
    )
    assert [(s.start, s.end, s.words) for s in spans] == [
        (1.0, 2.0, "jingle"),
        (1.75, 1.75, "“Icy”: primary stress"),
        (2.12, 10.15, "speech"),
        (2.12, 6.33, "S1 speaks"),
        (2.12, 6.33, "calm"),
        (6.34, 10.15, "S2 speaks"),
        (6.34, 10.15, "dry"),
        (8.0, 8.0, "thud"),
    ]
    assert len(stated_times([f"x{i} from {i}s to {i + 1}s. " for i in range(500)])) == 24
    assert stated_times(["from " * 20_000 + "1:" * 20_000]) == []  # and soon


def test_times_of_the_provenance_count_from_the_piece():
    events = [{"label": "dog", "start": 31.0, "end": 33}, {"text": "cat", "onset": 1, "offset": 2}]
    notes = {"prepared": {"start": [30.5]}, "fields": {"events": json.dumps(events)}}
    assert provenance_times(notes) == [Span(0.5, 2.5, "dog")]
    assert provenance_times({"events": events})[1] == Span(31.0, 33.0, "dog")
    bad = [3, {"start": "a", "end": 1}, {"start": 2, "end": 1}, {"start": float("nan"), "end": 1}]
    assert provenance_times({"events": bad, "segments": "{no", "fields": 3, "prepared": 0}) == []


def test_texts_go_with_the_clip_before_them():
    assert texts_of_clips(Record("a", caption="x")) == []
    turns = (("user", "text", "make"), ("assistant", "audio", 1), ("assistant", "text", "done"))
    more = (("user", "audio", 0), ("user", "text", "and this?"))
    record = Record("a", messages=turns + more, clips=(None, None))
    assert texts_of_clips(record) == [["and this?"], ["make", "done"]]


def test_events_that_overlap_have_lanes_of_their_own():
    spans = [
        Span(0, 4, "a"),
        Span(1, 1, "b"),
        Span(2, 3, "c"),
        Span(4, 5, "d"),
        Span(9.9, 9.9, "e"),
    ]
    assert [lane for lane, _ in in_lanes(spans, 10)] == [0, 1, 2, 0, 0]


class Few:
    """A set that need not be written."""

    name = "few"

    def __init__(self, *records):
        self.records = records
        self.seconds = np.ones(len(records))

    def __getitem__(self, i):
        return self.records[i]

    def rows(self, task):
        return np.full(len(self.records), 7)


def test_what_is_wrong_with_a_record_is_told():
    flac = encoded(sound(1.0), kind="FLAC")
    records = (
        Record("a", "Late from 0.5s to 3.5s.", clips=(Clip(16_000, audio=flac),)),
        Record("b", "Damaged.", clips=(Clip(16_000, audio=b"no FLAC"),)),
        Record("c", "Short.", clips=(Clip(9_000, audio=flac),)),
        Record("d", messages=(("assistant", "text", "Hm."),) * 30, clips=(Clip(9),) * 9),
    )
    few = Few(*records)
    cards = [Page(examples_section([(few, i)], None, Room(10**6))) for i in range(len(records))]
    assert "stated after the end of the clip: Late 3.5 s" in cards[0].text
    assert "the kept audio is damaged" in cards[1].text
    assert "the kept audio has 16000 samples" in cards[2].text
    assert "and 5 more recordings" in cards[3].text and "and 6 more messages" in cards[3].text
    assert [card.source.count("Spectrogram of") for card in cards] == [1, 0, 1, 0]
