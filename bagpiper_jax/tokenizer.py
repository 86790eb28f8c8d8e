"""Text ↔ ids behind one small protocol: SentencePiece (small models) and Qwen3 (`tokenizers`)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Protocol

from bagpiper_jax.errors import UserError

# how SentencePiece writes a space inside its pieces
_SPACE = "▁"


class Tokenizer(Protocol):
    """What the project asks of a tokenizer. Ids start at 0, `decode` inverts `encode`."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class SentencePieceTokenizer:
    """A SentencePiece model; bytes stand in for what its pieces do not cover."""

    def __init__(self, model: bytes):
        import sentencepiece

        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: str | os.PathLike) -> SentencePieceTokenizer:
        """Reads a `.model` file.

        Raises:
          UserError: the file is missing or is no SentencePiece model.
        """
        try:
            with open(path, "rb") as f:
                model = f.read()
        except OSError as e:
            raise UserError(f"cannot read the tokenizer {path}: {e.strerror}") from e
        try:
            if model:  # an empty one would load without a word
                return cls(model)
        except RuntimeError:
            pass
        raise UserError(f"{path} is not a SentencePiece model: copy or fit it again")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
        """Fits a BPE model. Spaces are kept as they are, so that texts round-trip exactly.

        Raises:
          UserError: the texts do not support `vocab_size` pieces.
        """
        import sentencepiece

        buffer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=buffer,
                vocab_size=vocab_size,
                model_type="bpe",
                byte_fallback=True,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=True,
                user_defined_symbols=['▁"', '"'],
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                unk_id=0,
                num_threads=1,  # the same pieces on every machine
                minloglevel=2,
            )
        except RuntimeError as e:
            raise UserError(f"cannot fit {vocab_size} pieces to the texts: {e}") from e
        return cls(buffer.getvalue())

    def save(self, path: str | os.PathLike) -> None:
        with open(path, "wb") as f:
            f.write(self.model)

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
          UserError: the text holds a lone surrogate, which has no UTF-8 bytes.
        """
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise UserError(f"the text is not valid Unicode at character {e.start}") from e
        if _SPACE not in text:
            return self._processor.encode(text)
        # SentencePiece would read the sign ▁ as a space. So another character, one that falls back
        # to its bytes, stands in for it, and its bytes are then exchanged for those of ▁.
        stand_in = next(c for c in map(chr, range(0x10FFFF, 0, -1)) if c not in text)
        ids = self._processor.encode(text.replace(_SPACE, stand_in))
        return _replace(ids, self._byte_ids(stand_in), self._byte_ids(_SPACE))

    def _byte_ids(self, character: str) -> list[int]:
        return self._processor.piece_to_id([f"<0x{b:02X}>" for b in character.encode()])

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def __reduce__(self):
        return SentencePieceTokenizer, (self.model,)


def _replace(ids: list[int], old: list[int], new: list[int]) -> list[int]:
    """`ids` with every run `old` exchanged for `new`."""
    out: list[int] = []
    for i in ids:
        out.append(i)
        if out[-len(old) :] == old:
            out[-len(old) :] = new
    return out


class Qwen3Tokenizer:
    """Qwen3's byte-level BPE, read from its `tokenizer.json` by the `tokenizers` package."""

    # rows of Qwen3's tables; the tokenizer itself uses the first 151,669 of them
    vocab_size = 151_936

    def __init__(self, path: str | os.PathLike):
        """Reads `tokenizer.json`, or the one in a Hugging Face directory.

        Raises:
          UserError: the file is missing or damaged, or `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ImportError as e:
            raise UserError("Qwen3's tokenizer needs: pip install 'bagpiper_jax[convert]'") from e
        if os.path.isdir(path):
            path = os.path.join(path, "tokenizer.json")
        if not os.path.isfile(path):
            raise UserError(f"there is no tokenizer at {path}")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as e:  # the package raises a bare Exception
            raise UserError(f"{path} is not a tokenizer.json: {e}") from e

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
