"""The page about prepared sets: what it holds, escapes and leaves out; damaged sets."""

import argparse
import html
import json
import re
import shutil

import numpy as np
import pytest
from page_reader import Page
from sound_sources import Listed, encoded, sound

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.prepared import PreparedSet, open_prepared
from bagpiper_jax.preparation.inspect import pictures
from bagpiper_jax.preparation.inspect.commands import add_inspect_parser
from bagpiper_jax.preparation.inspect.examples import choose
from bagpiper_jax.preparation.inspect.plans import make_plans
from bagpiper_jax.preparation.inspect.write import inspect_sets
from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.options import Options, load_tools
from bagpiper_jax.preparation.prepare import prepare

OPTIONS = Options(timeout=300)
SHAPE = RowShape(1024, 12)
HOSTILE = '</p><script>alert("1")</script><img src=x onerror=alert(2)> & $\\frac{$ 中文'


def audio(seconds, seed):
    return Audio(data=encoded(sound(seconds, seed)))


ITEMS = (
    Item(
        "one<b>",
        (audio(2.0, 1),),
        f"{HOSTILE} S1 speaks from 0.20s to 1.20s, a gong at 1.5s.",
        domain="speech",
        language="<i>de",
        licence="<u>CC0</u>",
        provenance={"fields": {"note": HOSTILE}},
    ),
    Item("two", (audio(1.0, 2),), "Rain.", domain="sound", licence="CC0-1.0"),
    Item("again", (audio(1.0, 2),), "Rain.", domain="sound", licence="CC0-1.0"),
    Item("three", (audio(1.5, 3),), "An organ.", domain="music", language="en"),
    Item(
        "talk",
        (audio(1.2, 4), audio(1.1, 5)),
        messages=(
            ("user", "audio", 0),
            ("user", "text", f"What is it? {HOSTILE}"),
            ("assistant", "text", "A bird from 0.1s to 0.9s."),
            ("assistant", "audio", 1),
        ),
        domain="sound",
    ),
    Item("silent", (Audio(data=encoded(np.zeros(16_000, np.float32))),), "Nothing."),
    Damaged("bad", f"it is broken {HOSTILE}"),
)


def prepared(out, items=ITEMS, **options):
    told = Options(**{"timeout": 300, **options})
    return prepare([Listed(items)], out, told, workers=1, quiet=True).directory


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Captioned clips of three domains, a dialogue, a duplicate and two quarantined items."""
    return prepared(tmp_path_factory.mktemp("full") / "set")


@pytest.fixture(scope="module")
def shown(full):
    return looked_at(full)


def looked_at(*directories, **options):
    out = directories[0] + ".html"
    notes = inspect_sets(directories, out, **{"shape": SHAPE, **options})
    with open(out, encoding="utf-8") as file:
        return Page(file.read(), notes)


def numbers(value):
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_it_asks_for_nothing_and_runs_nothing(shown):
    assert shown.addresses and all(a.startswith("data:") for a in shown.addresses)
    assert not re.search(r"https?://|@import|url\(", shown.source)
    assert "script" not in shown.tags and "iframe" not in shown.tags


def test_text_of_the_data_is_escaped(shown):
    """Captions, messages, labels, ids, reasons and provenance."""
    assert "<script" not in shown.source and "<img src=x" not in shown.source
    assert shown.text.count('<script>alert("1")</script>') >= 3  # read as text
    assert HOSTILE in shown.text and "onerror=alert(2)" in shown.folded
    for words in ("listed/one<b>", "<i>de", "<u>CC0</u>"):
        assert words in shown.text and html.escape(words) in shown.source
        assert words not in shown.source


def test_every_number_of_the_description_is_there(full, shown):
    info = open_prepared(full).info
    stated = [info[key] for key in ("counts", "quarantine", "tasks", "hours", "loudness_lufs")]
    found = [number for part in stated for number in numbers(part)]
    assert len(found) > 30
    for number in found:
        shape = f"{number:,}" if isinstance(number, int) else f"{number:g}"
        assert re.search(rf"(?<![\d.,]){re.escape(shape)}(?!\d|[.,]\d)", shown.text), number
    assert json.dumps(info["fingerprint"]) in shown.folded
    assert info["counts"]["items"] == {"in": 7, "quarantined": 2, "kept": 4, "duplicates": 1}
    assert "✓ adds up" in shown.text


def test_counts_that_do_not_add_up_are_told(full, tmp_path):
    page = looked_at(changed(full, tmp_path, lambda i: i["counts"]["items"].update(kept=3)))
    assert "✗ does not add up" in page.text


def test_players_pictures_and_words(shown):
    """Each kept recording, and what its codes give; two recordings of the dialogue."""
    assert shown.source.count('src="data:audio/flac') == 3 * 2 + 2
    assert shown.text.count("as kept") == shown.text.count("from its codes") == 4
    assert "recording 1, from its codes" in shown.text
    assert shown.source.count("Spectrogram of") == 5
    assert "A bird from 0.1s to 0.9s." in shown.text and "An organ." in shown.text


def test_reasons_of_quarantine_with_examples(shown):
    assert f"it is broken {HOSTILE[:30]}" in shown.text
    assert "its first channel stays under -60 dB" in shown.text


def test_rows_are_pictured_and_their_tokens_named(full, shown):
    assert shown.source.count(' as packed"') == 4  # two of each plan
    assert "Base tasks, row 0" in shown.text and "Dialogues, row 0" in shown.text
    for name in ("assistant", "audio", "eos", "pad", "stream 7"):
        assert name in shown.text
    assert "listed/talk" in shown.folded  # among the segments
    tools = load_tools(OPTIONS)
    (base, talk) = make_plans([open_prepared(full)], tools, SHAPE)
    assert f"{100 * base.statistics.fill:.2f}" in shown.text
    assert f"{100 * talk.statistics.window_fill:.1f}" in shown.text
    for source in base.statistics.sources.values():
        assert f"{100 * source.share:.2f}" in shown.text and f"{source.tokens:,}" in shown.text


def test_kinds_and_windows_of_a_row(full):
    """Every token is told for what it is, and every window for whose it is."""
    tools = load_tools(OPTIONS)
    (plan,) = make_plans([open_prepared(full)], tools, SHAPE, mixture={"dialogue": 1.0})
    row, vocab = plan.rows[0], tools.config.vocab
    kinds = pictures.kinds_of(row, vocab)
    mine = row.segment_ids == 1
    tokens = row.tokens[mine]
    assert ((kinds[mine] == pictures.EMPTY) == (tokens == 0))[row.audio_index[mine] < 0].all()
    record = open_prepared(full)[3]
    assert record.messages and (kinds[mine] == pictures.CODE).sum() == record.clips[1].codes.size
    pads = vocab.num_streams * (vocab.num_streams - 1)
    assert (kinds[mine] == pictures.CODE_PAD).sum() == pads
    assert (kinds[mine] == pictures.MARKER).sum() == 1 + 3 * 4
    heard = row.audio_index[mine] >= 0
    assert (kinds[mine][:, 0] == pictures.HEARD).sum() == heard.sum() == 16  # 1.2 s: 13 + 3
    owners = pictures.window_segments(row)
    assert owners[:2].tolist() == [1, 1] and not owners[2:4].any() and owners[4] == 2
    image = pictures.kind_image(kinds, row.loss_mask)
    assert image[~row.loss_mask & (kinds > 0), 3].max() < 0.5 and image[row.loss_mask, 3].min() == 1


@pytest.mark.parametrize(
    "options, players, pictures_of_clips",
    [
        ({"codes": False}, 3, 3),
        ({"keep": "mel"}, 3 + 1, 3 + 2),
        ({"keep": "neither", "codes": False}, 0, 0),
    ],
    ids=["without codes", "mel windows for audio", "neither audio nor codes"],
)
def test_sets_that_keep_less(tmp_path, options, players, pictures_of_clips):
    """Nothing of them is in quarantine but what cannot be kept at all."""
    page = looked_at(prepared(tmp_path / "set", ITEMS[:5], **options))
    assert page.source.count('src="data:audio') == players
    assert page.source.count("Spectrogram of") == pictures_of_clips
    assert "Base tasks, row 0" in page.text
    if not players:
        assert "neither audio, nor mel windows, nor codes" in page.text


def test_nothing_quarantined_and_text_alone(tmp_path):
    page = looked_at(prepared(tmp_path / "set", (Item("word", caption="Only words."),)))
    assert "Nothing was quarantined." in page.text and "There is no audio." in page.text
    assert page.count("audio") == 0 and "Only words." in page.text


def test_a_set_of_nothing(tmp_path):
    page = looked_at(prepared(tmp_path / "set", (Damaged("bad", "it is broken"),)))
    assert "there is nothing to pack" in page.text and "it is broken" in page.text
    assert page.count("article") == 0


def test_its_size_is_bounded(full, tmp_path):
    long = Item("long", caption="word " * 20_000, domain="speech")
    words = prepared(tmp_path / "words", (long, *(Item(f"{i}", caption=f"{i}") for i in range(9))))
    page = looked_at(full, words, examples=3, rows=0, max_mb=0.05)
    assert page.text.count("positions: ") == 3 and "Rows as packed" not in page.text
    assert sum(len(a) for a in page.addresses if a.startswith("data:audio")) <= 50_000
    assert "no room left on this page (--max-mb)" in page.text
    page = looked_at(words, examples=20, rows=0)
    assert page.text.count("positions: ") == 10 and "94,000 more characters" in page.text
    assert len(page.source) < 300_000
    assert len(looked_at(full, examples=0, rows=0).source) < 200_000


def test_records_are_spread_over_domains_by_seed(full):
    sets = [open_prepared(full)]
    kinds = {(sets[0][i].domain, bool(sets[0][i].messages)) for _, i in choose(sets, 4, 0)}
    assert kinds == {("speech", False), ("sound", False), ("music", False), ("sound", True)}

    class Many:
        domains = np.repeat(np.array([0, 1, 2], np.uint8), [5, 500, 500])

        def rows(self, task):
            return np.full(1005, -1)

    picks = [[i for _, i in choose([Many()], 21, seed)] for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2] and len(set(picks[0])) == 21
    assert np.bincount(Many.domains[picks[0]]).tolist() == [5, 8, 8]


def changed(directory, tmp_path, change):
    """A copy of a set with another `dataset.json`."""
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    info = json.loads((copy / "dataset.json").read_text())
    change(info)
    (copy / "dataset.json").write_text(json.dumps(info))
    return str(copy)


def test_sets_of_another_model(full, tmp_path):
    codec = changed(full, tmp_path, lambda info: info["assets"].update(codec="f" * 64))
    page = looked_at(codec)
    assert len(page.notes) == 1 and "another codec" in page.notes[0]
    assert page.notes[0] in page.text and page.source.count('src="data:audio') == 4
    other = changed(full, tmp_path / "b", lambda info: info["assets"].update(tokenizer="f" * 64))
    page = looked_at(other)
    assert "another model" in page.notes[0] and "as packed" not in page.text
    assert "Examples" in page.text


def test_a_hostile_name(full, tmp_path):
    page = looked_at(changed(full, tmp_path, lambda info: info.update(name="\ud800<script>\x07")))
    assert "?<script>\ufffd" in page.text and "<script" not in page.source
    assert "?<script>\ufffd/text_to_audio" in page.text


def test_rows_that_cannot_be_made_are_told(full, monkeypatch):
    def fail(self, i):
        raise RuntimeError(f"no FLAC {HOSTILE}")

    monkeypatch.setattr(PreparedSet, "__getitem__", fail)
    page = looked_at(full, examples=0, rows=1)
    assert page.text.count("row 0 cannot be made: no FLAC </p><script>") == 2


def test_two_sets_of_one_name(full, tmp_path):
    copy = changed(full, tmp_path, lambda info: info.update(fingerprint="0" * 16))
    page = looked_at(full, copy)
    assert f"{copy}/text_to_audio" in page.text and "8 records, " in page.text


def _cut(name):
    def change(copy):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda copy: shutil.rmtree(copy), "no finished prepared data set"),
        (lambda copy: (copy / "dataset.json").unlink(), "no finished prepared data set"),
        (_cut("dataset.json"), "dataset.json is damaged"),
        (lambda copy: (copy / "index.npy").unlink(), "there is no .*index.npy"),
        (_cut("index.npy"), "index.npy is damaged"),
        (lambda copy: [s.unlink() for s in copy.glob("records-*")], "missing or damaged"),
        (lambda copy: (copy / "quarantine.jsonl").unlink(), "cannot read .*quarantine.jsonl"),
        (lambda copy: (copy / "quarantine.jsonl").write_text("{\n"), "quarantine.jsonl is damaged"),
    ],
)
def test_directories_that_are_no_whole_sets(full, tmp_path, change, words):
    copy = tmp_path / "copy"
    shutil.copytree(full, copy)
    change(copy)
    with pytest.raises(UserError, match=words) as raised:
        looked_at(str(copy), examples=2, rows=1)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "copy.html").exists()


def test_a_description_without_its_counts(full, tmp_path):
    with pytest.raises(UserError, match="dataset.json is damaged"):
        looked_at(changed(full, tmp_path, lambda info: info.pop("counts")))
    with pytest.raises(UserError, match="named twice"):
        looked_at(full, full)


def run(*told):
    parser = argparse.ArgumentParser()
    add_inspect_parser(parser.add_subparsers())
    args = parser.parse_args(["inspect", *told])
    args.command(args)


def test_the_command(full, tmp_path, capsys):
    out = tmp_path / "page.html"
    small = ["--length", "512", "--windows", "8", "--rows", "1", "--examples", "1"]
    run(full, "--out", str(out), *small, "--mixture", "text_only=1", "--mixture", "dialogue=3")
    assert re.fullmatch(r".*page.html: \d\.\d MB\n", capsys.readouterr().out)
    page = Page(out.read_text(), [])
    assert "asked 75.00" in page.text and "The mixture as told, row 0" in page.text
    for told, words in (
        (["--mixture", "song=1"], "'song' is none of"),
        (["--mixture", "dialogue"], "--mixture dialogue: say it like"),
        (["--windows", "3"], "multiple of 4"),
        (["--length", "0"], "--length and --windows"),
        (["--windows", "0", "--mixture", "audio_to_text=1"], "serves audio_to_text"),
        (["--examples", "-1"], "0 or more"),
        (["--model", str(tmp_path)], "no model directory"),
    ):
        with pytest.raises(UserError, match=words):
            run(full, "--out", str(out), *told)
