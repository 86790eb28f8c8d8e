"""Both tokenizers: exact round trips, stable ids, and one clear line for a bad file."""

import json
import pickle
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bagpiper_jax.errors import UserError
from bagpiper_jax.tokenizer import Qwen3Tokenizer, SentencePieceTokenizer

# any character, and the likely offenders more often: white space, quotes, SentencePiece's own
# signs, what the wrapper might put in place of ▁
texts = st.text(
    st.characters(codec="utf-8")
    | st.sampled_from(" \t\n\r\"'abc▁⁇😀é\u0301\ufeff\U0010ffff\U0010fffe")
)


@given(text=texts)
@example(text="")
@example(text="  two  spaces, before and after  ")
@example(text="\ta\tb\n\nc\r\n ")
@example(text='""quotes" "in" a row"')
@example(text="a▁b ▁ ▁▁\U0010ffff▁")
@example(text="<unk><s></s><0x41> ⁇ ")
@example(text="👩‍👩‍👧 flag 🇩🇪 ﬁ Ａ \u3000\xa0\u200b\u2028")
def test_sentencepiece_gives_back_any_text(small_tokenizer, text):
    ids = small_tokenizer.encode(text)
    assert small_tokenizer.decode(ids) == text
    assert all(0 < i < small_tokenizer.vocab_size for i in ids)  # 0 is "unknown"


def test_plain_text_is_what_sentencepiece_makes_of_it(small_tokenizer, captions):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=small_tokenizer.model)
    for text in captions:
        assert small_tokenizer.encode(text) == processor.encode(text)
        assert len(small_tokenizer.encode(text)) < len(text)


def test_quotes_are_pieces_of_their_own(small_tokenizer):
    inside = small_tokenizer.encode('says "seven"')
    assert small_tokenizer.decode(inside[-1:]) == '"'
    assert small_tokenizer.encode('"seven"')[0] in inside


def test_the_sign_of_a_space_is_its_three_bytes(small_tokenizer):
    plain, marked = small_tokenizer.encode("ab"), small_tokenizer.encode("a▁b")
    assert small_tokenizer.decode(marked) == "a▁b" != small_tokenizer.decode(plain)
    assert len(marked) == len(small_tokenizer.encode("a\x00b")) + 2


def test_same_texts_give_the_same_model(small_tokenizer, captions):
    assert SentencePieceTokenizer.train(iter(captions * 20), 320).model == small_tokenizer.model
    assert small_tokenizer.vocab_size == 320


def test_pickle_and_files_keep_the_ids(small_tokenizer, captions, tmp_path):
    small_tokenizer.save(tmp_path / "t.model")
    ids = small_tokenizer.encode(captions[0])
    for copy in (
        SentencePieceTokenizer.load(tmp_path / "t.model"),
        pickle.loads(pickle.dumps(small_tokenizer)),
    ):
        assert copy.encode(captions[0]) == ids
        assert copy.model == small_tokenizer.model


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_sizes_that_the_texts_do_not_support(captions, size):
    with pytest.raises(UserError, match=f"cannot fit {size} pieces"):
        SentencePieceTokenizer.train(captions, size)


def test_half_a_character_is_refused(small_tokenizer):
    with pytest.raises(UserError, match="not valid Unicode at character 2"):
        small_tokenizer.encode("ab\ud800")


def test_missing_sentencepiece_file(tmp_path):
    with pytest.raises(UserError, match="no.model: No such file"):
        SentencePieceTokenizer.load(tmp_path / "no.model")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "middle"])
def test_damaged_sentencepiece_file(small_tokenizer, tmp_path, damage):
    model = small_tokenizer.model
    content = {
        "empty": b"",
        "text": b"not a model\n" * 50,
        "cut": model[: len(model) // 2],
        "middle": model[:500] + b"\xff" * 300 + model[800:],
    }[damage]
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.model is not a SentencePiece model"):
        SentencePieceTokenizer.load(path)


@pytest.fixture(scope="module")
def qwen3_file(captions, tmp_path_factory):
    """A byte-level BPE of the form of Qwen3's, small; `<|im_end|>` is a special token."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions * 20, trainer)
    path = tmp_path_factory.mktemp("qwen3") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@given(text=texts)
@example(text="Hello!<|im_end|> ▁\t\n")
def test_qwen3_gives_back_any_text(qwen3, text):
    assert qwen3.decode(qwen3.encode(text)) == text


@pytest.fixture(scope="module")
def qwen3(qwen3_file):
    return Qwen3Tokenizer(qwen3_file)


def test_qwen3_file_or_directory(qwen3, qwen3_file):
    assert qwen3.vocab_size == 151_936
    in_directory = Qwen3Tokenizer(qwen3_file.parent)
    assert in_directory.encode("a quiet room") == qwen3.encode("a quiet room")
    assert len(qwen3.encode("a<|im_end|>")) == 2


def test_missing_or_damaged_qwen3_file(qwen3_file, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer\.json"):
        Qwen3Tokenizer(tmp_path)
    for content in ("", "{}", json.dumps({"model": "none"}), qwen3_file.read_text()[:2000]):
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(UserError, match=r"bad\.json is not a tokenizer\.json"):
            Qwen3Tokenizer(path)


def test_qwen3_without_its_package(qwen3_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install"):
        Qwen3Tokenizer(qwen3_file)
