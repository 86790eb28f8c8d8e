"""How a path, or a mapping from a config, becomes a source."""

import json
import pickle
import subprocess
import sys

import pytest
from source_files import read_all, write_audio

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.sources import open_source

GOOD = {"audio": "audio/b.wav", "caption": "Fine."}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", "nowhere"),
        ("folder:nowhere", "no folder nowhere"),
        ("jsonl:nowhere/*.jsonl", "no file of kind jsonl"),
        ("", "needs a path"),
        ({"kind": "folder"}, "needs a path"),
        ({"path": ".", "kind": "zip"}, "none of folder, jsonl"),
        ({"path": ".", "kind": "folder", "licenc": "MIT"}, "mean licence"),
        ({"path": ".", "kind": "folder", "split": "train"}, "no setting split"),
        ({"path": ".", "kind": "folder", "domain": "noise"}, "domain"),
        ({"path": ".", "kind": "folder", "text_only": "yes"}, "text_only"),
        ({"path": ".", "kind": "folder", "columns": {"captoin": "x"}}, "captoin"),
        (7, "int"),
        ('{"path": ', "no JSON"),
        ('{"kind": "folder"}', "needs a path"),
        (__file__, "known kind"),
    ],
)
def test_specs_that_are_not_understood(spec, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_kinds_are_told_by_what_is_there(tmp_path):
    write_audio(tmp_path / "audio" / "b.wav")
    assert type(open_source(str(tmp_path))).__name__ == "Folder"
    for name in ("two.jsonl", "one.jsonl"):
        (tmp_path / name).write_text(json.dumps({**GOOD, "id": name}) + "\n")
    assert [e.id for e in read_all(open_source(str(tmp_path)))] == ["one.jsonl", "two.jsonl"]
    assert [e.id for e in read_all(open_source(f"{tmp_path}/t*.jsonl"))] == ["two.jsonl"]
    (tmp_path / "x.tar").touch()
    with pytest.raises(UserError, match="jsonl and webdataset"):
        open_source(str(tmp_path))
    assert type(open_source(f"webdataset:{tmp_path}")).__name__ == "WebDataset"


def test_a_config_dict_and_a_pickle(tmp_path):
    from ml_collections import ConfigDict

    write_audio(tmp_path / "audio" / "b.wav")
    (tmp_path / "set.jsonl").write_text(json.dumps({"audio": "audio/b.wav", "says": "Hi."}) + "\n")
    spec = ConfigDict({"path": f"{tmp_path}/set.jsonl", "columns": {"caption": "says"}})
    source = open_source(spec)
    assert read_all(pickle.loads(pickle.dumps(source))) == read_all(source)
    assert read_all(source)[0].caption == "Hi."
    assert open_source(json.dumps(spec.to_dict())) == source


def test_names_of_sources():
    for spec, name in (
        ("tfds:sets/clotho/2.1.0", "clotho"),
        ("tfds:/sets/librispeech/dev_clean/1.0.0/", "dev_clean"),
        ("tfds:clotho", "clotho"),
        ({"path": "tfds:clotho", "kind": "tfds", "name": "mine"}, "mine"),
    ):
        assert open_source(spec).name == name


def test_sources_import_no_framework():
    code = (
        "import sys, bagpiper_jax.preparation.sources;"
        "bad = {'jax', 'torch', 'tensorflow', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stamps_tell_of_changes_and_not_of_places(tmp_path):
    for name in ("here", "there"):
        write_audio(tmp_path / name / "audio" / "b.wav")
        (tmp_path / name / "set.jsonl").write_text(json.dumps(GOOD) + "\n")
    here, there = (open_source(f"{tmp_path}/{name}/set.jsonl") for name in ("here", "there"))
    assert here.stamp() == there.stamp()
    folders = [open_source(f"folder:{tmp_path}/{name}/audio") for name in ("here", "there")]
    assert folders[0].stamp() == folders[1].stamp()
    with open(tmp_path / "there" / "set.jsonl", "a") as file:
        file.write(json.dumps({**GOOD, "id": "more"}) + "\n")
    write_audio(tmp_path / "there" / "audio" / "c.wav")
    assert here.stamp() != there.stamp()
    assert folders[0].stamp() != folders[1].stamp()
