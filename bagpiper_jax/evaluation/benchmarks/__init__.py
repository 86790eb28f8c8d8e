"""Public benchmarks in their released formats: MMAU, AIR-Bench chat, AudioBench, LibriSpeech,
Seed-TTS-Eval. Each is a function (generator, data, sampling, settings) → (figures, items)."""
