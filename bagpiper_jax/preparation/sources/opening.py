"""A path, or a mapping from a config → `Source`."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Source
from bagpiper_jax.preparation.sources import jsonl, webdataset
from bagpiper_jax.preparation.sources.entries import ALIASES, DOMAINS, Defaults
from bagpiper_jax.preparation.sources.folder import Folder
from bagpiper_jax.preparation.sources.jsonl import JsonLines
from bagpiper_jax.preparation.sources.parquet import Parquet
from bagpiper_jax.preparation.sources.tfds import TfdsSet
from bagpiper_jax.preparation.sources.webdataset import WebDataset

SUFFIXES = {
    "jsonl": jsonl.SUFFIXES,
    "parquet": (".parquet",),
    "webdataset": webdataset.SUFFIXES,
}
KINDS = ("folder", *SUFFIXES, "tfds")
_COMMON = ("kind", "path", "name", "columns", "domain", "language", "licence", "text_only")
_OWN = {
    "jsonl": ("audio_root", "within", "absolute"),
    "tfds": ("split", "data_dir", "sample_rate"),
}
_TYPES: dict[str, type] = {"text_only": bool, "absolute": bool, "sample_rate": int}


def open_source(spec: str | Mapping[str, Any]) -> Source:
    """The source that a spec describes. Nothing of it is read before `parts`.

    Args:
      spec: a path, `KIND:PATH`, or a mapping (from a config, or JSON in text) with `path` and, as
        needed, `kind`, `name`, `columns` (the source's names of fields: {"caption": "sentence"}),
        `domain`, `language` and `licence` of entries that do not say, `text_only` (entries without
        audio are texts); for jsonl `audio_root` (what paths are relative to), `within` (a folder
        above, that they must not leave) and `absolute` (paths may be absolute); for tfds
        `split`, `data_dir` and `sample_rate`. Kinds are folder, jsonl, parquet, webdataset and
        tfds; without one it is told by what the path holds. A path may be a file, a folder of such
        files, or a pattern (`shards/*.tar`); for tfds, a data set's name or its version's folder.

    Raises:
      UserError: the path is not there, or the spec is not understood.
    """
    options = _options(spec)
    path = options["path"]
    kind = options.get("kind") or _kind(path)
    for key in options:
        _check_key(key, kind)
    name = options.get("name") or _name(path, kind)
    common = {"name": name, "defaults": _defaults(options)}
    own = {key: options[key] for key in _OWN.get(kind, ()) if key in options}
    for key in ("audio_root", "within"):
        if key in own and not os.path.isdir(own[key]):
            raise UserError(f"source {name}: {key} names {own[key]}, which is no folder")
    if kind == "folder":
        if not os.path.isdir(path):
            raise UserError(f"source {name}: there is no folder {path}")
        return Folder(path=path, **common)
    if kind == "tfds":
        return TfdsSet(dataset=path, **own, **common)
    classes: dict[str, Callable[..., Source]] = {
        "jsonl": JsonLines,
        "parquet": Parquet,
        "webdataset": WebDataset,
    }
    return classes[kind](files=_files(path, kind), **own, **common)


def _options(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    if hasattr(spec, "to_dict"):  # an ml_collections ConfigDict
        spec = spec.to_dict()
    if isinstance(spec, str | os.PathLike):
        text = os.fspath(spec)
        kind, _, rest = text.partition(":")
        if text.startswith("{"):
            try:
                spec = json.loads(text)
            except ValueError as e:
                raise UserError(f"source {text}: it is no JSON: {e}") from e
        else:
            spec = {"kind": kind, "path": rest} if kind in KINDS else {"path": text}
    if not isinstance(spec, Mapping):
        raise UserError(f"a source is a path or a mapping, not {type(spec).__name__}")
    path = spec.get("path")
    if not isinstance(path, str) or not path:
        raise UserError("a source needs a path: give PATH, KIND:PATH or {'path': …}")
    kind = spec.get("kind")
    if kind is not None and kind not in KINDS:
        raise UserError(f"source {path}: kind {kind!r} is none of {', '.join(KINDS)}")
    for key, value in spec.items():
        wanted = _TYPES.get(key, Mapping if key == "columns" else str)
        if value is not None and not isinstance(value, wanted):
            raise UserError(f"source {path}: {key} is {value!r}, it must be a {wanted.__name__}")
    return {key: value for key, value in spec.items() if value is not None}


def _check_key(key: str, kind: str) -> None:
    known = (*_COMMON, *_OWN.get(kind, ()))
    if key in known:
        return
    near = difflib.get_close_matches(key, known, 1)
    hint = f"do you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    raise UserError(f"a source of kind {kind} has no setting {key}: {hint}")


def _defaults(options: Mapping[str, Any]) -> Defaults:
    columns = dict(options.get("columns", {}))
    for field in columns:
        if field not in ALIASES:
            raise UserError(f"columns: {field} is no field: they are {', '.join(ALIASES)}")
    domain = options.get("domain", "mixed")
    if domain not in DOMAINS:
        raise UserError(f"domain {domain!r} is none of {', '.join(DOMAINS)}")
    return Defaults(
        columns,
        domain,
        options.get("language", "und"),
        options.get("licence", ""),
        options.get("text_only", False),
    )


def _kind(path: str) -> str:
    """What kind of source lies at a path."""
    for kind, suffixes in SUFFIXES.items():
        if path.endswith(suffixes):
            return kind
    if not os.path.isdir(path):
        wanted = (
            f"name its kind, as in tfds:{path}" if not os.path.exists(path) else "name its kind"
        )
        raise UserError(f"source {path}: it is no folder and no file of a known kind: {wanted}")
    if os.path.isfile(os.path.join(path, "dataset_info.json")):
        return "tfds"
    found = [kind for kind in SUFFIXES if next(_inside(path, kind), None)]
    if len(found) > 1:
        raise UserError(
            f"source {path} holds {' and '.join(found)}: name one, as {found[0]}:{path}"
        )
    return found[0] if found else "folder"


def _files(path: str, kind: str) -> tuple[str, ...]:
    """The files of a kind at a path: itself, those in the folder, or those of the pattern."""
    if os.path.isdir(path):
        files = sorted(_inside(path, kind))
    elif os.path.isfile(path):
        files = [path]
    else:
        files = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not files:
        raise UserError(f"source {path}: there is no file of kind {kind}")
    return tuple(files)


def _inside(folder: str, kind: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        yield from (e.path for e in found if e.name.endswith(SUFFIXES[kind]) and e.is_file())


def _name(path: str, kind: str) -> str:
    folder, base = os.path.split(os.path.normpath(path))
    if kind == "tfds" and folder and re.fullmatch(r"\d+\.\d+\.\d+", base):
        base = os.path.basename(folder)  # each data set has its versions in a folder
    return base.split(".")[0].replace("*", "") or "source"
