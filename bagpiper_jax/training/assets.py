"""Fits, or copies, the files that make a run self-contained."""

from __future__ import annotations

import os

from tqdm import tqdm

from bagpiper_jax.files import write_whole
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import plan_scene, render_scene, train_captions
from bagpiper_jax.modeling.config import BagpiperConfig, get_config
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.release import (
    CODEC_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Assets,
    load_assets,
    write_config,
)
from bagpiper_jax.tokenizer import SentencePieceTokenizer
from bagpiper_jax.training.config import RunConfig

# enough to cover every clip of the corpus many times, and two minutes of two cores in all
_TOKENIZER_CAPTIONS = 20_000
_CODEC_SCENES = 2_000


def prepare_assets(run: RunConfig, workdir: str) -> Assets:
    """Reads the run's assets from its workdir, or fits or copies them there first.

    Raises:
      UserError: a named file does not load, or its sizes do not fit the model.
    """
    config = get_config(run.model)
    paths = [os.path.join(workdir, name) for name in (MODEL_FILE, TOKENIZER_FILE, CODEC_FILE)]
    if not os.path.exists(paths[0]):
        write_whole(paths[0], lambda p: write_config(p, config))
    if not os.path.exists(paths[1]):
        write_whole(paths[1], _tokenizer(run, config).save)
    if not os.path.exists(paths[2]):
        write_whole(paths[2], _codec(run, config).save)
    return load_assets(workdir)


def _tokenizer(run: RunConfig, config: BagpiperConfig) -> SentencePieceTokenizer:
    path = run.data.tokenizer or (run.init_from and os.path.join(run.init_from, TOKENIZER_FILE))
    if path:
        return SentencePieceTokenizer.load(path)
    captions = train_captions(load_corpus(run.data.corpus), run.seed, _TOKENIZER_CAPTIONS)
    return SentencePieceTokenizer.train(captions, config.vocab.text_size)


def _codec(run: RunConfig, config: BagpiperConfig) -> MelCodec:
    path = run.data.codec or (run.init_from and os.path.join(run.init_from, CODEC_FILE))
    if path:
        return MelCodec.load(path)
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
