"""Small files in the released forms of the benchmarks, a scripted model, and a judge's settings."""

import json

import numpy as np
import soundfile

from bagpiper_jax.conversation import Message
from bagpiper_jax.evaluation.benchmarks.llm import default_llm_config, llm_from

RATE = 16_000


def tone(number, seconds=0.3):
    """No two of them alike, so that a scripted model knows which it hears."""
    return 0.3 * np.sin(np.arange(int(seconds * RATE)) * (0.05 + 0.01 * number))


def write_wav(path, number, seconds=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(number, seconds), RATE, subtype="PCM_16")


MMAU = [
    ("Who speaks?", ["Man", "Woman", "Child", "Robot"], "Man", "sound", "easy"),
    ("What is heard?", ["a dog", "a cat"], "a cat", "sound", "hard"),
    ("Which key?", ["C major", "A minor", "G major", "E minor"], "A minor", "music", "medium"),
    ("How does she feel?", ["glad", "sad", "angry", "calm"], "calm", "speech", "medium"),
]


def make_mmau(folder, rows=MMAU):
    entries = []
    for i, (question, choices, answer, task, difficulty) in enumerate(rows):
        write_wav(folder / "test-mini-audios" / f"q{i}.wav", i)
        entries.append(
            {
                "id": f"q{i}",
                "audio_id": f"./test-mini-audios/q{i}.wav",
                "question": question,
                "choices": choices,
                "answer": answer,
                "dataset": "AudioSet",
                "task": task,
                "split": "test-mini",
                "category": "Reasoning",
                "sub-category": "Acoustic Source Inference",
                "difficulty": difficulty,
            }
        )
    (folder / "mmau-test-mini.json").write_text(json.dumps(entries))
    return folder


AIR = ("speech_QA", "sound_QA", "music_QA", "speech_and_sound_QA", "speech_and_music_QA")


def make_air_bench(folder, tasks=AIR):
    entries = []
    for i, task in enumerate(tasks):
        write_wav(folder / f"{task}_set" / f"{i}.wav", i)
        entries.append(
            {
                "uniq_id": i,
                "path": f"{i}.wav",
                "task_name": task,
                "dataset_name": "set",
                "question": f"What of {i}?",
                "answer_gt": f"reference {i}",
                "meta_info": f"description {i}",
            }
        )
    folder.mkdir(exist_ok=True)
    (folder / "Chat_meta.json").write_text(json.dumps(entries))
    return folder


WORDS = ["HE HOPED THERE WOULD BE STEW", "MISTER BROWN HAS TWENTY TWO COLOURS"]


def make_librispeech(folder, words=WORDS):
    chapter = folder / "LibriSpeech" / "test-clean" / "61" / "70968"
    lines = []
    for i, text in enumerate(words):
        write_wav(chapter / f"61-70968-{i:04}.flac", i)
        lines.append(f"61-70968-{i:04} {text}\n")
    (chapter / "61-70968.trans.txt").write_text("".join(lines))
    return folder


class Scripted:
    """A pipeline that answers a clip by its number and text by itself.

    replies: number of the tone → what is written; sounds: what is made of a prompt.
    """

    def __init__(self, replies=(), sounds=None):
        self.replies, self.sounds = dict(enumerate(replies)), sounds
        self.heard, self.prompts, self.seeds = [], [], []

    def listen(self, audio):
        number = next(i for i in range(50) if np.allclose(audio[:99], tone(i)[:99], atol=1e-3))
        return Message("user", "audio", number)

    def chat_batch(self, conversations, *, modalities, sampling=None, seed=0):
        self.seeds.append(seed)
        return [[self._message(c, modalities, seed)] for c in conversations]

    def _message(self, conversation, modalities, seed):
        self.prompts.append(conversation[-1].content if conversation[-1].modality == "text" else "")
        if modalities[-1] == "audio":
            return Message("assistant", "audio", self.sounds(conversation[-1].content, seed))
        number = conversation[0].content
        self.heard.append(number)
        return Message("assistant", "text", self.replies[number])

    def play(self, message):
        return message.content


def make_llm(server, tmp_path, **changes):
    c = default_llm_config()
    c.model.api, c.model.name = "openai", "judge-2026-01-01"
    c.model.base_url, c.model.key_env = server.url + "/v1", ""
    c.model.timeout_s, c.model.max_tokens = 10.0, 100
    c.cache = str(tmp_path / "answers.sqlite")
    c.retry.first_s, c.retry.max_s = 0.01, 0.05
    c.update_from_flattened_dict(changes)
    return llm_from(c)
