"""Eight CPU devices for every test, and the small pieces that many tests share."""

import os
import signal
import tempfile

# A shell's background job ignores it, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little: without LLVM's long passes they take a third less time.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)

# Many tests compile the same programs, some of them in processes of their own: each is compiled
# once. The directory lies beside the tests' own, so that a cleaned machine starts afresh.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"bagpiper-jit-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import dataclasses  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# how long an example takes depends on what else the machine does
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


class Letters:
    """A tokenizer to read tables by: "a" is 0, "b" is 1, … "z" is 25."""

    vocab_size = 26

    def encode(self, text):
        return [ord(c) - ord("a") for c in text]

    def decode(self, ids):
        return "".join(chr(i + ord("a")) for i in ids)


@pytest.fixture(scope="session")
def letters():
    return Letters()


@pytest.fixture(scope="session")
def captions():
    return [
        'A woman says "seven three nine" in a quiet room, then a gong.',
        'A man spells "K R four" over slow organ music; birdsong follows.',
        "Two sounds together: rain and a large dog, recorded in a hall.",
        'Someone asks, "please enter your password", with faint noise behind.',
    ]


@pytest.fixture(scope="session")
def small_tokenizer(captions):
    """SentencePiece with as many pieces as the tiny model has text ids."""
    from bagpiper_jax.tokenizer import SentencePieceTokenizer

    return SentencePieceTokenizer.train(captions * 20, 320)


@pytest.fixture(scope="session")
def make_model():
    """Models whose every weight is random, norms, biases and stream embeddings included."""
    import jax
    from flax import nnx

    from bagpiper_jax.modeling.bagpiper import Bagpiper

    def make(config, seed=0, **settings):
        # the model's own initialisation takes seconds
        model = nnx.eval_shape(lambda: Bagpiper(config, rngs=nnx.Rngs(0), **settings))
        rng = np.random.default_rng(seed)

        def value(path, shape):
            is_norm = "norm" in str(path) and "bias" not in str(path) or "ln_post" in str(path)
            noise = 0.1 * rng.standard_normal(shape.shape, dtype=np.float32)
            return jax.numpy.asarray(noise + 1.0 if is_norm else noise)

        nnx.update(model, jax.tree.map_with_path(value, nnx.state(model, nnx.Param)))
        return model

    return make


@pytest.fixture(scope="session")
def tiny_config():
    from bagpiper_jax.modeling.config import get_config

    return dataclasses.replace(get_config("tiny"), z_loss=1e-3)


@pytest.fixture(scope="session")
def tiny_model(tiny_config, make_model):
    """Shared by all tests: do not change it."""
    return make_model(tiny_config)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of six steps without a break: its workdir, which must not change, and its state."""
    from tiny_run import settings

    from bagpiper_jax.training import assets
    from bagpiper_jax.training.loop import train

    workdir = str(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        # enough for 320 pieces and 16 codes
        patch.setattr(assets, "_TOKENIZER_CAPTIONS", 2_000)
        patch.setattr(assets, "_CODEC_SCENES", 100)
        return workdir, train(settings(), workdir)


@pytest.fixture
def no_proxy(monkeypatch):
    """For tests that talk to an endpoint of this machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
