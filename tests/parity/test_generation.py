"""Greedy answers of the engine against a plain loop in PyTorch.

The loop lays the conversation out, keeps no cache and runs the whole sequence at every row; it
shares no code with the engine but the tables of ids.
"""

import collections
import dataclasses

import numpy as np
import pytest

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.conversation import Message, encode_prompt
from bagpiper_jax.inference import steps
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.requests import MAX_MESSAGES, Request
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.log_mel import mel_windows

pytestmark = pytest.mark.slow

ENDS = [vocab_lib.EOS, vocab_lib.EOT]
PLANS = [("text",), ("audio",), ("text", "audio"), None]
# (min_rows, max_rows); of audio also no room for the delay of 4 streams, and a tight fit
LIMITS = {"text": [(0, 12), (5, 9), (1, 14)], "audio": [(0, 12), (9, 16), (2, 3), (7, 8)]}


class Plain:
    """What a model answers, by the published description."""

    def __init__(self, original):
        self.original = original
        self.vocab = original.config.vocab
        self.streams = self.vocab.num_streams
        self.narrowest = np.inf  # margin between a chosen token and the next one

    def row(self, token):
        return [token] + [0] * (self.streams - 1)

    def prompt(self, messages, tokenizer):
        """Rows up to `<|assistant|>`, and the clips (first row, windows) in them."""
        roles = [m.role for m in messages] + ["assistant"]
        rows, clips = [self.row(vocab_lib.BOS)], []
        for message, following in zip(messages, roles[1:]):
            rows.append(self.row(vocab_lib.ROLES[message.role]))
            rows.append(self.row(vocab_lib.MODALITIES[message.modality]))
            if message.modality == "text":
                # text id 0 is stored as `<|pad|>`
                ids = [i and i + 256 for i in tokenizer.encode(message.content)]
                rows += [self.row(i) for i in ids]
            elif message.role == "assistant":
                frames = len(message.content)
                for r in range(frames + self.streams - 1):
                    delayed = self.vocab.stream_pads.tolist()
                    for k in range(self.streams):
                        if 0 <= r - k < frames:
                            delayed[k] += 1 + int(message.content[r - k, k])
                    rows.append(delayed)
            else:
                clips.append((len(rows), message.content))
                halved = lambda n: -(-n // 2)  # noqa: E731
                for frames in message.content.frames.tolist():
                    rows += [self.row(0)] * halved(halved(halved(frames)))
            rows.append(self.row(ENDS[following == message.role]))
        return rows + [self.row(vocab_lib.ROLES["assistant"])], clips

    def logits(self, embedded, rows):
        """Logits of all streams [K, V] after a context [n, D] and rows."""
        import torch

        x = torch.cat([embedded, self.original.embed(rows)]) if rows else embedded
        return self.original.hidden(x)[-1] @ self.original.head.weight.T

    def likeliest(self, logits, allowed):
        """The best of some tokens."""
        values = logits[allowed]
        order = values.argsort(descending=True)
        if len(allowed) > 1:
            margin = (values[order[0]] - values[order[1]]) / logits.std()
            self.narrowest = min(self.narrowest, float(margin))
        return allowed[int(order[0])]

    def message(self, context, clips, modality, sampling):
        """(rows, what ended it) of one message after a context that ends with its marker."""
        given = self.original.embed(context, clips)
        zeros = self.original.embed([[0] * self.streams] * len(context))
        rows, frames = [], None
        while len(rows) < sampling.max_rows:
            logits = self.logits(given, rows)
            if sampling.cfg != 1:
                without = self.logits(zeros, rows)
                logits = sampling.cfg * logits + (1 - sampling.cfg) * without
            may_end = ENDS if len(rows) >= sampling.min_rows else []
            if modality == "text":
                allowed = [*may_end, *range(self.vocab.text_start, self.vocab.codec_start)]
                token = self.likeliest(logits[0], allowed)
                if token in ENDS:
                    return rows, token
                rows.append(self.row(token))
                continue
            # T frames take T + K − 1 rows. T is known once stream 0 has no further code: its pad,
            # or already an end token. What is promised of the rows counts the delay's.
            at = len(rows)
            if frames is not None and at == frames + self.streams - 1:
                return rows, self.likeliest(logits[0], ENDS)
            first, stop = self.vocab.stream_range(0)
            if frames is None:
                if at + self.streams > sampling.max_rows:
                    token = first
                else:
                    pad = [first] if at + self.streams > sampling.min_rows else []
                    token = self.likeliest(logits[0], [*may_end, *pad, *range(first + 1, stop)])
                if token == first or token in ENDS:
                    frames, token = at, first
            else:
                token = first
            row = [token]
            for k in range(1, self.streams):
                first, stop = self.vocab.stream_range(k)
                is_code = at >= k and (frames is None or at - k < frames)
                codes = list(range(first + 1, stop))
                row.append(self.likeliest(logits[k], codes) if is_code else first)
            rows.append(row)
        return rows, steps.CUT

    def answer(self, messages, tokenizer, plan, sampling):
        """[(modality, rows, what ended it)] of the messages that answer a conversation."""
        context, clips = self.prompt(messages, tokenizer)
        answer = []
        for number in range(len(plan) if plan else MAX_MESSAGES):
            markers = {vocab_lib.MODALITIES[m]: m for m in ("text", "audio")}
            if plan:
                modality = plan[number]
            else:
                logits = self.logits(self.original.embed(context, clips), [])
                modality = markers[self.likeliest(logits[0], list(markers))]
            context = [*context, self.row(vocab_lib.MODALITIES[modality])]
            rows, end = self.message(context, clips, modality, sampling[modality])
            answer.append((modality, rows, end))
            if plan is None and end != vocab_lib.EOT:
                break
            # another message of the same role follows
            context += [*rows, self.row(vocab_lib.EOT), self.row(vocab_lib.ROLES["assistant"])]
        return answer


@pytest.fixture(scope="module")
def pair(tiny_config):
    """An original and a model whose answers are long and short, of both modalities."""
    import torch

    from .original import Original, copy_original

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is computed is small
    vocab = dataclasses.replace(tiny_config.vocab, zero_text_id_is_pad=True)
    original = Original(dataclasses.replace(tiny_config, vocab=vocab), scale=0.4)
    with torch.no_grad():
        original.head.weight[ENDS] *= 2.5
    yield original, copy_original(original)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def conversations(tiny_config):
    rng = np.random.default_rng(0)
    vocab = tiny_config.vocab
    # 218 frames and 16: a clip below a window is exact in multiples of 8 (test_audio_encoder.py)
    clip, short = (mel_windows(rng.normal(size=n).astype(np.float32)) for n in (35_000, 2_600))
    codes = rng.integers(0, vocab.codebook_size, (5, vocab.num_streams))
    user = lambda modality, content: Message("user", modality, content)  # noqa: E731
    return [
        [user("text", "abell")],
        [user("audio", clip)],
        [Message("system", "text", "bebrief"), user("audio", short)],
        [user("audio", short), user("text", "whatisit"), user("audio", clip)],
        [user("text", "x"), Message("assistant", "audio", codes)],
        [user("text", "y"), Message("assistant", "audio", codes[:2]), user("text", "louder")],
        [Message("system", "audio", short), Message("assistant", "text", "a"), user("text", "z")],
    ]


def test_greedy_answers(pair, conversations, letters):
    """Each in one batch with all others; hypotheses of a greedy answer are equal."""
    import torch

    original, model = pair
    plain, cases, requests = Plain(original), [], []
    for i, conversation in enumerate(conversations):
        for j, plan in enumerate(PLANS):
            for cfg in (1.0, 3.0):
                sampling = {
                    m: Sampling(0.0, 20, cfg, *limits[(i + j) % len(limits)])
                    for m, limits in LIMITS.items()
                }
                prompt = encode_prompt(conversation, model.config.vocab, letters)
                hypotheses = 2 if (i + j) % 4 == 0 else 1
                cases.append((conversation, plan, sampling))
                requests.append(Request(prompt, sampling, plan, hypotheses=hypotheses))
    assert len(cases) >= 50
    answers = Engine(model).generate(requests)
    seen = collections.Counter()
    for (conversation, plan, sampling), request, hypotheses in zip(cases, requests, answers):
        with torch.no_grad():
            expected = plain.answer(conversation, letters, plan, sampling)
        assert len(hypotheses) == request.hypotheses
        for messages in hypotheses:
            case = str((len(request.prompt), plan, sampling))
            ends = [(m.modality, m.end) for m in messages]
            assert ends == [(m, end) for m, _, end in expected], case
            for message, (_, rows, _) in zip(messages, expected):
                rows = np.reshape(rows, (-1, plain.streams))
                np.testing.assert_array_equal(message.rows, rows, case)
        seen.update((plan, m, end) for m, _, end in expected)
        seen[plan and len(plan), "messages", len(expected)] += 1
    # what the weights must give for this to be a test: clear choices, every end, continuations
    assert plain.narrowest > 1e-4, "other seeds or another scale of the original's weights"
    for end in (*ENDS, steps.CUT):
        assert all(sum(seen[plan, m, end] for plan in PLANS) for m in ("text", "audio")), seen
    assert seen[None, "text", vocab_lib.EOT] and seen[None, "audio", vocab_lib.EOT], seen
    assert all(seen[None, "messages", n] for n in (1, 2, 3, 4)), seen
