"""What texts and provenance say of when things happen, and where it is drawn."""

import json

from bagpiper_jax.html_report.media import Span, in_lanes
from bagpiper_jax.input_pipeline.records import Record
from bagpiper_jax.preparation.inspect.examples import texts_of_clips
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
