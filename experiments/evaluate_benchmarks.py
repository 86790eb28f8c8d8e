"""Public benchmarks, whose files are to be had first: docs/evaluation-benchmarks.md tells where.

    bagpiper evaluate --config experiments/evaluate_benchmarks.py --workdir runs/benchmarks \\
        --config.checkpoint=sft_8b --config.evaluators.mmau.data=MMAU \\
        --config.evaluators.mmau.use=mmau

Every evaluator is left out until its `use` is given, and needs its `data`. Judges are language
models: the section `llm` of the evaluators that have one names an endpoint, that of Gemini or
(`model.api` "openai") any that speaks OpenAI's protocol, and the environment variable with its key.
The same command goes on where it was killed; judgements are kept in the file `llm.cache`, so
nothing is paid twice.
"""

import ml_collections

from bagpiper_jax.evaluation.benchmarks.llm import default_llm_config
from bagpiper_jax.evaluation.benchmarks.tts import TEMPLATE
from bagpiper_jax.evaluation.config import audio_settings


def get_config() -> ml_collections.ConfigDict:
    """All of them, none chosen."""
    c = ml_collections.ConfigDict()
    c.checkpoint = ""  # a release, a run's workdir, what `bagpiper convert --to orbax` wrote
    c.corpus = ""  # of the mini world, which has no part in it
    c.seed = 1  # of sampling, intervals and the choice of items
    c.dtype = "float32"  # of parameters and computation; bfloat16 takes half the memory
    c.mesh = ml_collections.ConfigDict()  # all 1: the first device; -1: the devices that are left
    c.mesh.replica = 1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1  # must divide the key/value heads
    c.audio = audio_settings()  # of the audio's sampling, in place of the model's
    c.evaluators = ml_collections.ConfigDict()
    for name in (
        *("mmau", "air_bench_chat", "audio_bench", "librispeech"),
        *("librispeech_tts", "seed_tts_eval"),
    ):
        c.evaluators[name] = ml_collections.ConfigDict()
        c.evaluators[name].use = ""  # the same name again
        c.evaluators[name].data = ""  # where its files lie
        c.evaluators[name].count = 0  # items, drawn by the seed; 0: all

    c.evaluators.mmau.mode = "choices"  # choices, open, or caption (the paper's probe; needs llm)
    c.evaluators.mmau.judged = False  # open answers are judged by llm too
    c.evaluators.mmau.caption_question = ""  # what asks for a caption; a base model needs nothing

    c.evaluators.audio_bench.datasets = ()  # names as in AudioBench
    # files with AudioBench's own prompts, of 0 to 5 and of 0 or 1; empty: in our words
    c.evaluators.audio_bench.judge_prompt = ""
    c.evaluators.audio_bench.binary_prompt = ""

    for name in ("librispeech", "librispeech_tts"):
        c.evaluators[name].subset = "test-clean"
    c.evaluators.librispeech.question = ""  # what asks for the words; empty: those of the caption
    c.evaluators.librispeech.by_llm = False  # llm takes the words out of captions too

    c.evaluators.seed_tts_eval.language = "en"  # or zh, which needs zhconv and another recogniser
    for name in ("librispeech_tts", "seed_tts_eval"):
        c.evaluators[name].template = TEMPLATE  # what the model is told, with {text}
        c.evaluators[name].modalities = ("audio",)  # ("text", "audio"): it writes a caption first
        c.evaluators[name].recogniser = ""  # directory of a Whisper, as large-v3; empty: tiny.en
        c.evaluators[name].repeats = 3  # renderings of each sentence, with other seeds
        c.evaluators[name].recordings = True  # it hears the true recordings too, where there are
        c.evaluators[name].keep = 8  # renderings whose sound is kept

    for name in ("mmau", "air_bench_chat", "audio_bench", "librispeech"):
        # the default name is an alias: give a dated one for figures that are to last
        c.evaluators[name].llm = default_llm_config()
    for name in ("mmau", "air_bench_chat", "audio_bench"):
        c.evaluators[name].judgements = 3  # of each answer (and order)
    return c
