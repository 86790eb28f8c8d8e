"""Fits, or copies, the files that make a run self-contained."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_whole
from bagpiper_jax.fingerprints import CODECS, TOKENIZERS, find_file, fingerprints
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import plan_scene, render_scene, train_captions
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.porting.runs import is_run
from bagpiper_jax.porting.served import served_shapes
from bagpiper_jax.release import (
    CODEC_FILE,
    MODEL_FILE,
    QWEN3_TOKENIZER_FILE,
    TOKENIZER_FILE,
    XCODEC_FILE,
    Assets,
    copy_xcodec,
    load_assets,
    read_config,
    write_config,
)
from bagpiper_jax.tokenizer import SentencePieceTokenizer
from bagpiper_jax.training.config import RunConfig

# enough to cover every clip of the corpus many times, and two minutes of two cores in all
_TOKENIZER_CAPTIONS = 20_000
_CODEC_SCENES = 2_000
_LARGEST_FITTED = 8_000  # pieces; the corpus has not the words for more
_FILES = {"tokenizer": TOKENIZERS, "codec": CODECS}


def run_shapes(run: RunConfig) -> BagpiperConfig:
    """The preset of a run, with text id 0 as the weights that it starts from know it.

    As pad where the published weights do; not in weights of Qwen3's parts, nor in random ones.
    A checkpoint that brings no shapes is taken for what the preset names.

    Raises:
      UserError: the shapes of `init_from` are damaged.
    """
    config, start = run.shapes, run.init_from
    if not start:
        is_pad = False
    elif is_run(start):
        is_pad = read_config(start).vocab.zero_text_id_is_pad
    else:
        is_pad = (served_shapes(start) or config).vocab.zero_text_id_is_pad
    vocab = dataclasses.replace(config.vocab, zero_text_id_is_pad=is_pad)
    return dataclasses.replace(config, vocab=vocab)


def prepare_assets(run: RunConfig, workdir: str) -> Assets:
    """Reads the run's assets from its workdir, or fits or copies them there first.

    Raises:
      UserError: a named file does not load, or its sizes do not fit the model.
    """
    config = run.shapes
    place = lambda name: os.path.join(workdir, name)  # noqa: E731
    if not os.path.exists(place(MODEL_FILE)):
        write_whole(place(MODEL_FILE), lambda p: write_config(p, run_shapes(run)))
    if not _first(workdir, TOKENIZERS):
        _put_tokenizer(run, config, workdir)
    if not _first(workdir, CODECS):
        _put_codec(run, config, workdir)
    return load_assets(workdir)


def asset_fingerprints(run: RunConfig, workdir: str) -> dict[str, Any]:
    """Of the tokenizer and codec that a run on prepared sets has, or is about to take.

    Raises:
      UserError: none is named, or a file is missing or damaged.
    """
    paths = {}
    for name, files in _FILES.items():
        paths[name] = _first(workdir, files) or _given(run, name)
        if not paths[name]:
            raise UserError(
                f"config key data.{name}: name the one that data.sets were prepared with"
            )
    return fingerprints(run.shapes, **paths)


def _first(directory: str, names: Sequence[str]) -> str:
    """The first of these files that is there; empty if none is."""
    paths = [os.path.join(directory, name) for name in names] if directory else []
    return next(filter(os.path.exists, paths), "")


def _given(run: RunConfig, name: str) -> str:
    """The tokenizer or codec that the config names, or init_from's; empty if there is none."""
    named = getattr(run.data, name)
    if os.path.isdir(named):
        return find_file(named, _FILES[name])
    return named or _first(run.init_from, _FILES[name])


def _put_tokenizer(run: RunConfig, config: BagpiperConfig, workdir: str) -> None:
    path = _given(run, "tokenizer")
    if path.endswith(".json"):
        target = os.path.join(workdir, QWEN3_TOKENIZER_FILE)
        write_whole(target, lambda p: shutil.copyfile(path, p))
        return
    if path:
        tokenizer = SentencePieceTokenizer.load(path)
    elif config.vocab.text_size > _LARGEST_FITTED:
        raise UserError("config key data.tokenizer: name the tokenizer.json of Qwen3")
    else:
        captions = train_captions(load_corpus(run.data.corpus), run.seed, _TOKENIZER_CAPTIONS)
        tokenizer = SentencePieceTokenizer.train(captions, config.vocab.text_size)
    write_whole(os.path.join(workdir, TOKENIZER_FILE), tokenizer.save)


def _put_codec(run: RunConfig, config: BagpiperConfig, workdir: str) -> None:
    path = _given(run, "codec")
    if os.path.basename(path) == XCODEC_FILE:
        copy_xcodec(os.path.dirname(path), workdir)
    elif path:
        MelCodec.load(path)  # it is whole
        write_whole(os.path.join(workdir, CODEC_FILE), lambda p: shutil.copyfile(path, p))
    else:
        write_whole(os.path.join(workdir, CODEC_FILE), _fitted_codec(run, config).save)


def _fitted_codec(run: RunConfig, config: BagpiperConfig) -> MelCodec:
    corpus = load_corpus(run.data.corpus)
    scenes = (
        render_scene(corpus, plan_scene(corpus, run.seed, i, "train", "mixed"))
        for i in range(_CODEC_SCENES)
    )
    books = config.vocab.num_streams
    with tqdm(total=books, desc="fitting the codec", unit="book") as bar:
        return MelCodec.fit(
            scenes,
            num_books=books,
            codebook_size=config.vocab.codebook_size,
            seed=run.seed,
            progress=lambda done, _: bar.update(done - bar.n),
        )
