"""Questions about scenes have one right answer, which the caption alone gives."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bagpiper_jax.conversation import (
    Message,
    captioned_answer,
    encode_conversation,
    split_answer,
)
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.caption_reader import read_answer
from bagpiper_jax.evaluation.question_probe import (
    caption_question_probe,
    question_probe,
    same_answer,
)
from bagpiper_jax.evaluation.tables import rows_of
from bagpiper_jax.evaluation.workdir import to_json
from bagpiper_jax.input_pipeline.packed_scenes import PackedScenes, load_corpus
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.scenes import (
    TASKS,
    ask,
    parse_caption,
    plan_scene,
    render_scene,
    request,
    turns,
)
from bagpiper_jax.input_pipeline.scenes.captions import TERSE
from bagpiper_jax.input_pipeline.scenes.questions import WORDINGS
from bagpiper_jax.input_pipeline.scenes.tasks import DIALOGUES
from bagpiper_jax.release import MINI, load_assets

CORPUS = str(Path(__file__).parents[1] / "data" / "mini")
DIGITS = "zero one two three four five six seven eight nine".split()
NUMBERS = [*DIGITS, "ten"]


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(CORPUS)


@pytest.fixture(scope="module")
def labels(corpus):
    return corpus.labels["train", "sound"]


def scenes(corpus, count, split="train", profile="scene", seed=5):
    return [plan_scene(corpus, seed, i, split, profile) for i in range(count)]


def test_answers_follow_from_the_caption_alone(corpus, labels):
    music = corpus.labels["train", "music"]
    told = Counter()
    for split in ("train", "test_a"):
        for scene in scenes(corpus, 500, split):
            question = ask(scene, labels)
            caption = parse_caption(scene.caption, corpus.event_labels)
            blind = question._replace(answer="")
            read = read_answer(blind, caption, music)
            assert read == question.answer, (scene.caption, question)
            told[question.kind] += 1
    assert set(told) == set(WORDINGS) and min(told.values()) >= 5
    held = scenes(corpus, 300)
    nothing = parse_caption("", corpus.event_labels)
    empty = {q.kind: read_answer(q, nothing, music) for q in (ask(s, labels) for s in held)}
    assert {kind for kind, answer in empty.items() if answer} == {
        *("length", "count", "music", "noise", "room", "present")
    }
    with pytest.raises(ValueError, match="no questions of the kind 'why'"):
        read_answer(question._replace(kind="why"), caption, music)


def test_order_of_events(corpus, labels):
    told = Counter()
    for scene in scenes(corpus, 800):
        question = ask(scene, labels)
        names = [event.voice_kind or event.label for event in scene.events]
        match question.kind:
            case "count":
                assert question.answer == NUMBERS[len(names)]
            case "first":
                assert scene.events[0].onset == min(event.onset for event in scene.events)
                assert question.answer == names[0]
            case "last":
                assert scene.events[-1].offset == max(event.offset for event in scene.events)
                assert question.answer == names[-1]
            case "order":
                first, last = scene.events[0], scene.events[-1]
                assert first.offset <= last.onset
                before = re.search(r"before|earlier", question.text)
                asked_first = question.text.index(names[0]) < question.text.index(names[-1])
                assert question.answer == ("yes" if asked_first == bool(before) else "no")
        told[question.kind, question.answer] += 1
    assert 0.3 < told["order", "yes"] / (told["order", "yes"] + told["order", "no"]) < 0.7
    assert set(WORDINGS) == {kind for kind, _ in told}


def test_some_wordings_are_never_trained_on(corpus, labels):
    trained = [ask(scene, labels) for scene in scenes(corpus, 400)]
    held_out = [ask(scene, labels) for scene in scenes(corpus, 400, "test_a")]
    assert not any(question.new_wording for question in trained)
    share = np.mean([question.new_wording for question in held_out])
    assert 0.4 < share < 0.6
    said = {q.text for q in trained if q.kind in ("said", "first", "count")}
    assert not said & {q.text for q in held_out if q.new_wording}


def test_a_question_depends_on_its_scene_only(corpus, labels):
    scene = scenes(corpus, 3)[2]
    assert ask(scene, labels) == ask(dataclasses.replace(scene), labels)
    assert request(scene) == request(dataclasses.replace(scene))


def test_requests_tell_all_in_other_words(corpus):
    for scene in scenes(corpus, 200):
        wish = request(scene)
        for event in scene.events:
            assert f'"{event.text}"' in wish if event.voice else event.label in wish
        assert wish.count(" together with ") == scene.groups.count(2)
        assert scene.bed is None or scene.bed.label in wish
        assert scene.template.split("{")[0] not in wish or len(scene.template.split("{")[0]) < 12


def test_an_answer_is_told_from_its_caption():
    assert split_answer(captioned_answer("A bell. It is dry.", "yes")) == (
        "A bell. It is dry.",
        "yes",
    )
    assert split_answer(" yes ") == ("", "yes")
    assert split_answer("Caption of the audio: A bell. It") == ("A bell. It", "")
    planned = captioned_answer("A bell.", "yes", "- Intent: to know\n\n- Plan: to say")
    assert split_answer(planned) == ("A bell.", "yes")
    assert split_answer(planned[: planned.index("</think>")]) == ("A bell.", "")
    assert split_answer("<think>\nIt rings.\n</think>\n\nyes") == ("", "yes")


def packed(profile, mixture):
    assets = load_assets(MINI)
    return PackedScenes(
        CORPUS,
        assets.config,
        assets.tokenizer,
        assets.codec,
        shape=RowShape(768, 48),
        num_rows=100,
        seed=0,
        profile=profile,
        mixture=mixture,
        cfg_dropout=0.0,
    )


@pytest.mark.parametrize("task", TASKS)
def test_planned_sizes_of_every_task_are_the_true_ones(task):
    source = packed("scene", {task: 1.0})
    planned = source.plan_example(task, 11)
    example = source.example(planned)
    assert len(example) == planned.rows
    assert bool(planned.windows) == bool(example.audio)
    row = source[0]
    assert (row.segment_ids > 0).mean() > 0.5


def test_mere_lists_are_neither_asked_about_nor_in_one_profile_heard():
    mixture = {"text_question": 0.3, "text_to_audio": 1.0, "audio_to_text": 1.0}
    mixed = packed("crowded_whole", mixture)
    planned = [p for row in range(64) for p in mixed.planned_row(row)]
    terse = {task: {p.scene.template == TERSE for p in planned if p.task == task} for task in TASKS}
    assert terse["text_question"] == terse["audio_to_text"] == {False}
    assert terse["text_to_audio"] == {False, True}
    early = packed("crowded_full", mixture)
    assert {
        p.scene.template == TERSE
        for row in range(64)
        for p in early.planned_row(row)
        if p.task == "audio_to_text"
    } == {False, True}
    with pytest.raises(ValueError, match="nothing can be asked"):
        packed("crowded_list", mixture)
    assert packed("crowded_list", mixture | {"text_question": 0.0}).planned_row(0)


def test_the_caption_is_a_target_of_the_captioned_tasks_alone(corpus, labels):
    assets = load_assets(MINI)
    scene = scenes(corpus, 1)[0]

    def learned(task):
        messages = [
            Message(t.role, t.modality, t.text)
            for t in turns(task, scene, labels)
            if t.modality == "text"
        ]
        example = encode_conversation(messages, assets.config.vocab, assets.tokenizer)
        targets = example.tokens[:, 0][example.loss_mask[:, 0]]
        return assets.tokenizer.decode(assets.config.vocab.tokens_to_text(targets))

    assert scene.caption in learned("question")
    assert scene.caption not in learned("question_direct")
    assert [t.text for t in turns("request", scene, labels)][1] == scene.caption
    assert len(turns("request_direct", scene, labels)) == 2
    shared = [turns("dialogue", scene, labels) for scene in scenes(corpus, 200)]
    assert all(
        captioned_answer(s.caption, ask(s, labels).answer) == t[2].text
        if t[0].modality == "audio"
        else t[1].text == s.caption
        for s, t in zip(scenes(corpus, 200), shared, strict=True)
    )
    assert 0.25 < np.mean([t[0].modality == "audio" for t in shared]) < 0.48


def test_dialogues_need_full_captions(corpus, labels):
    terse = scenes(corpus, 1, profile="words")[0]
    for task in DIALOGUES:
        with pytest.raises(ValueError, match="full captions"):
            turns(task, terse, labels)
    with pytest.raises(ValueError, match="none of"):
        turns("dictation", terse, labels)


def test_captions_are_asked(corpus, labels):
    """True captions answer all; those of other scenes and empty ones what chance gives."""
    count = 80
    by_audio = {
        render_scene(corpus, s).tobytes(): s.caption
        for s in scenes(corpus, count, "test_a", seed=1)
    }

    class Captioner:
        def __init__(self, say):
            self.say = say

        def describe_batch(self, audios, *, sampling, seed=0):
            return [self.say(by_audio[audio.tobytes()]) for audio in audios]

    def probe(say):
        return caption_question_probe(Captioner(say), corpus, None, split="test_a", count=count)

    figures, items = probe(lambda caption: caption)
    assert figures["accuracy"]["all"].value == 1.0 and len(items) == count
    assert figures["control"]["accuracy"]["all"].value < 0.6
    broken, _ = probe(lambda caption: "")
    assert broken["accuracy"]["of_words"].value == 0.0
    assert broken["accuracy"]["all"].value == broken["control"]["accuracy"]["all"].value < 0.5


class Oracle:
    """Answers from the scene whose audio it is given, found by its samples."""

    def __init__(self, corpus, labels, count, answer, seed=1):
        self.by_audio = {
            render_scene(corpus, scene).tobytes(): scene
            for scene in scenes(corpus, count, "test_a", seed=seed)
        }
        self.corpus, self.labels, self.answer = corpus, labels, answer

    def describe_batch(self, audios, question, *, sampling, seed=0):
        found = [self.by_audio[np.asarray(audio).tobytes()] for audio in audios]
        return [self.answer(s, q, self.labels) for s, q in zip(found, question, strict=True)]


def right(scene, text, labels):
    own = ask(scene, labels)
    return captioned_answer(scene.caption, own.answer if own.text == text else "I cannot tell")


def test_perfect_and_broken_answers(corpus, labels):
    count = 60
    figures, items = question_probe(
        Oracle(corpus, labels, count, right), corpus, None, split="test_a", count=count
    )
    assert figures["accuracy"]["all"].value == 1.0
    assert (
        figures["control"]["accuracy"]["all"].value < 0.2
    )  # another scene's question is not its own
    assert len(items) == count and all(item["caption_right"] for item in items)
    assert figures["read_from_caption"].value == 1.0

    def unread(scene, text, labels):
        return captioned_answer(scene.caption, "I cannot read")

    figures, _ = question_probe(
        Oracle(corpus, labels, count, unread), corpus, None, split="test_a", count=count
    )
    assert figures["accuracy"]["all"].value == 0 and figures["read_from_caption"].value == 1.0
    broken, _ = question_probe(
        Oracle(corpus, labels, count, lambda *_: "no"), corpus, None, split="test_a", count=count
    )
    share = np.mean([item["truth"] == "no" for item in items])
    assert broken["accuracy"]["all"].value == pytest.approx(share)
    assert "read_from_caption" not in broken
    assert broken["control"]["accuracy"]["all"].value == pytest.approx(share)
    assert broken["majority"]["all"].value >= broken["accuracy"]["all"].value
    shown = list(rows_of("questions", to_json(figures)))
    assert all(row.control for row in shown if row.path[0] == "accuracy")
    for name, figure in figures["accuracy"].items():
        assert figure.low <= figure.value <= figure.high, name
    with pytest.raises(UserError, match="two scenes"):
        question_probe(None, corpus, None, split="test_a", count=1)


def test_answers_are_compared_as_words():
    assert same_answer("Yes, calm music.", "yes, calm music")
    assert not same_answer("no hiss", "faint hiss") and not same_answer("", "no")
