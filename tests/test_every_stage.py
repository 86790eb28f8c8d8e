"""Recordings through every stage to a training: captions, dialogues, filters, shards, steps."""

import json

import pytest
import soundfile
from misbehaving_endpoint import Misbehaving
from simulation_runs import CONFIG, rows_of, set_environment
from tiny_run import CONFIG as MINI_CONFIG
from tiny_run import TINY, losses

from bagpiper_jax.cli import main
from bagpiper_jax.input_pipeline.prepared import open_prepared
from bagpiper_jax.input_pipeline.scenes import Corpus
from bagpiper_jax.json_lines import write_rows
from bagpiper_jax.release import MINI

pytestmark = pytest.mark.slow
CLIPS = 8
FILTERS = """
from bagpiper_jax.preparation.filters.run import default_config

def get_config():
    c = default_config()
    left_out = ("near_duplicates", "transcript_agreement")  # the endpoint always says the same
    c.filters = tuple(name for name in c.filters if name not in left_out)
    return c
"""


@pytest.fixture
def recordings(tmp_path):
    """Real phrases of the mini corpus, one of them damaged, as a manifest."""
    corpus = Corpus.load("data/mini")
    folder = tmp_path / "recordings"
    folder.mkdir()
    phrases = [c for c in corpus.clips.values() if c.kind == "phrase" and c.num_samples > 20_000]
    rows = []
    for clip in phrases[:CLIPS]:
        soundfile.write(folder / f"{len(rows)}.flac", corpus.audio[clip.id], 16_000)
        rows.append({"id": f"clip{len(rows)}", "audio": f"{len(rows)}.flac", "domain": "speech"})
    write_rows(folder / "clips.jsonl", rows)
    return folder / "clips.jsonl"


def test_from_recordings_to_a_training(recordings, tmp_path, monkeypatch):
    set_environment(monkeypatch)
    source, summaries = recordings, {}
    (tmp_path / "filters.py").write_text(FILTERS)
    with Misbehaving([(429, {}, {}), "truncated", "reset"]) as server:
        config = tmp_path / "simulate.py"
        cache = str(tmp_path / "answers.sqlite")
        config.write_text(CONFIG.format(api="openai", url=server.url + "/v1", cache=cache))
        for stage in ("caption", "requests", "traces", "assemble", "judge"):
            target = tmp_path / f"{stage}.jsonl"
            told = ["--in", str(source), "--out", str(target), "--config", str(config), "--quiet"]
            assert main(["simulate", stage, *told]) == 0
            summaries[stage] = json.loads((tmp_path / f"{stage}.summary.json").read_text())
            source = target
            if stage == "caption":
                source = tmp_path / "good.jsonl"
                told = ["--in", str(target), "--out", str(source), "--quiet"]
                assert (
                    main(["data", "filter", *told, "--config", str(tmp_path / "filters.py")]) == 0
                )
                assert len(rows_of(source)) == CLIPS
    assert [summaries[s]["in"] for s in summaries] == [CLIPS, *[4 * CLIPS] * 4]
    for summary in summaries.values():
        assert summary["in"] == summary["out"] and not summary["quarantined"]

    # a recording that has been damaged since: its dialogues are counted, nothing stops
    (recordings.parent / "3.flac").write_bytes(b"fLaC" + bytes(200))
    sets = {"captions": tmp_path / "good.jsonl", "dialogues": source}
    counts = {"captions": (CLIPS, 1), "dialogues": (4 * CLIPS, 4)}
    for name, manifest in sets.items():
        out = str(tmp_path / name)
        assert main(["data", "prepare", "--source", str(manifest), "--out", out]) == 0
        prepared = open_prepared(out)
        items, (given, damaged) = prepared.info["counts"]["items"], counts[name]
        assert items["in"] == given and items["quarantined"] == damaged
        assert items["in"] == items["kept"] + items["duplicates"] + items["quarantined"]
        assert len(prepared) == items["kept"] > 0
    page = tmp_path / "page.html"
    assert main(["data", "inspect", *(str(tmp_path / n) for n in sets), "--out", str(page)]) == 0
    assert "unreadable" in page.read_text()

    tasks = [("captions", t) for t in ("text_to_audio", "audio_to_text", "text_only")]
    chosen = tuple((str(tmp_path / s), t, 1.0) for s, t in [*tasks, ("dialogues", "dialogue")])
    mixture = {t: 1.0 for _, t, _ in chosen}
    workdir = str(tmp_path / "run")
    overrides = [
        "--config.model=mini",
        "--config.mesh.fsdp=1",
        "--config.mesh.tensor=1",
        "--config.steps=3",
        "--config.save_every=3",
        "--config.data.length=2048",
        "--config.data.batch_tokens=4096",
        "--config.data.windows=48",
        f"--config.data.sets={chosen!r}",
        f"--config.data.mixture={mixture!r}",
        f"--config.data.tokenizer={MINI}/tokenizer.model",
        f"--config.data.codec={MINI}/codec.npz",
    ]
    run = ["train", "--config", MINI_CONFIG, *TINY, *overrides, "--workdir", workdir]
    assert main(run) == 0
    curve = losses(workdir)
    assert sorted(curve) == [1, 2, 3] and curve[3] < curve[1]
