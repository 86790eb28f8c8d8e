"""The directory of an evaluation: what it was begun with, and the outcomes that are done."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from bagpiper_jax.audio import save_audio
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, text_metrics
from bagpiper_jax.evaluation.context import Context, Outcome
from bagpiper_jax.evaluation.sampling_choice import sampling_source
from bagpiper_jax.files import make_directory, write_json
from bagpiper_jax.fingerprints import file_fingerprint, tree_fingerprint
from bagpiper_jax.json_lines import write_rows
from bagpiper_jax.release import (
    CODEC_FILE,
    MODEL_FILE,
    QWEN3_TOKENIZER_FILE,
    SAMPLING_FILE,
    TOKENIZER_FILE,
    XCODEC_FILE,
    weights_digest,
    xcodec_fingerprint,
)
from bagpiper_jax.store import open_sliced

HEAD_FILE, OUTPUTS_FILE, AUDIO_DIR = "run.json", "outputs.jsonl", "audio"
_FILES = (
    MODEL_FILE,
    TOKENIZER_FILE,
    QWEN3_TOKENIZER_FILE,
    CODEC_FILE,
    SAMPLING_FILE,
)
# what `results.json` holds beside the figures: no evaluator may have such a name
HEAD = (
    "checkpoint",
    "weights_sha256",
    "date",
    "seed",
    "audio",
    "dtype",
    "mesh",
    "sampling",
    "sampling_source",
    "judges",
    "versions",
    "versions_of",
    "files",
    "evaluators",
)
RESERVED = (*HEAD, "run", "outputs", "results")
_MEND = "delete it and evaluate again"


def weights_fingerprint(directory: str) -> str:
    """SHA-256 of a model's weights: of a release its file, of a run its latest checkpoint's arrays.

    Raises:
      UserError: there are none, or they are damaged.
    """
    if digest := weights_digest(directory):
        return digest
    whole = hashlib.sha256()
    for name, array in sorted(open_sliced(directory).items()):
        whole.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        part = array.cut((slice(None),) * array.ndim)
        whole.update(np.ascontiguousarray(part).view(np.uint8))
    return whole.hexdigest()


def open_head(workdir: str, context: Context, weights: str) -> dict[str, Any]:
    """What the evaluation was begun with: checked against what is there now, or written.

    Args:
      weights: `weights_fingerprint` of the checkpoint.

    Raises:
      UserError: the workdir was begun with other files or another seed, or is damaged.
    """
    files = _files(context, weights)
    head = read_json(os.path.join(workdir, HEAD_FILE))
    if head is None:
        sampling = context.sampling
        head = {
            "checkpoint": os.path.basename(os.path.abspath(context.checkpoint)),
            "weights_sha256": weights_digest(context.checkpoint),
            "date": datetime.date.today().isoformat(),
            "seed": context.seed,
            "audio": context.audio,
            "dtype": context.dtype,
            "mesh": context.mesh,
            "sampling": {kind: dataclasses.asdict(s) for kind, s in sampling.items()},
            "sampling_source": sampling_source(context.checkpoint, sampling["audio"]),
            "versions": asr.versions(),
            "files": files,
        }
        write_json(os.path.join(workdir, HEAD_FILE), head)
        return head
    then = head.get("files", {})
    changed = sorted(name for name in {*files, *then} if files.get(name) != then.get(name))
    if head.get("seed") != context.seed:
        changed.append(f"seed ({head.get('seed')}, not {context.seed})")
    if head.get("versions") != asr.versions():
        print(
            f"{workdir} was begun with other versions of packages: its figures name those, and "
            "what is measured now has its own under versions_of"
        )
    if head.get("audio", {}) != context.audio:
        changed.append("settings of the audio")
    dtype = head.get("dtype", "float32")  # of what was begun before it was told
    if dtype != context.dtype:
        changed.append(f"dtype ({dtype}, not {context.dtype})")
    if head.get("mesh", context.mesh) != context.mesh:
        print(f"{workdir} was begun on another mesh: what is generated now may round otherwise")
    if changed:
        raise UserError(
            f"{workdir} was begun with other {', '.join(changed)}: name another workdir, or delete "
            "this one"
        )
    return head


def _files(context: Context, weights: str) -> dict[str, str]:
    """Digests of the files that figures depend on."""
    paths = [os.path.join(context.checkpoint, name) for name in _FILES]
    paths.append(os.path.join(context.corpus_dir, "clips.tsv"))
    found = {os.path.basename(p): file_fingerprint(p) for p in paths if os.path.isfile(p)}
    if os.path.isfile(os.path.join(context.checkpoint, XCODEC_FILE)):
        found["xcodec"] = xcodec_fingerprint(context.checkpoint)
    if recordings := tree_fingerprint(context.corpus_dir):
        found["recordings"] = recordings
    return {"weights": weights, **found}


def read_outcome(workdir: str, name: str, use: str, settings: dict[str, Any]) -> Any:
    """An evaluator's figures, or None where it is not done.

    Raises:
      UserError: it was done by another evaluator or with other settings, or the file is damaged.
    """
    path = os.path.join(workdir, f"{name}.json")
    done = _read_done(path)
    if done is None:
        return None
    files = tree_fingerprint(settings.get("data", ""))
    if files and files != done.get("data"):  # figures may outlive the data
        raise UserError(
            f"{path} was made with other files in {settings.get('data')}: name another workdir, or "
            "delete this file"
        )
    then, now = ({"use": u, **s} for u, s in ((done["use"], done["settings"]), (use, settings)))
    changed = [
        f"{key}={then.get(key)} (not {now.get(key)})"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{path} was made with {', '.join(changed)}: name another workdir, or delete this file"
        )
    return done["figures"]


def versions_of(workdir: str, names: Iterable[str], begun: Any) -> dict[str, Any]:
    """Versions of packages by evaluator, of those done with others than `begun`."""
    found = {}
    for name in names:
        done = _read_done(os.path.join(workdir, f"{name}.json"))
        # what was done before versions were kept has none
        if done and done.get("versions", begun) != begun:
            found[name] = done["versions"]
    return found


def write_outcome(
    workdir: str, name: str, use: str, settings: dict[str, Any], outcome: Outcome
) -> None:
    """Keeps an outcome: clips, items, sums, and at last `NAME.json`, by which it is done.

    Raises:
      UserError: a file cannot be written.
    """
    folder = clips_dir(workdir, name)
    shutil.rmtree(folder, ignore_errors=True)  # of a kill in the middle
    if outcome.clips:
        make_directory(folder)
    for clip, wav in outcome.clips.items():
        save_audio(os.path.join(folder, f"{clip}.flac"), wav)
    write_rows(os.path.join(workdir, f"{name}.jsonl"), map(to_json, outcome.items))
    sums = {"/".join(path): value.sums._asdict() for path, value in _ratios(outcome.figures)}
    write_json(os.path.join(workdir, f"{name}.sums.json"), sums)
    done = {
        "use": use,
        "settings": settings,
        "data": tree_fingerprint(settings.get("data", "")),
        "versions": asr.versions(),
        "figures": to_json(outcome.figures),
    }
    write_json(os.path.join(workdir, f"{name}.json"), done)


def clips_dir(workdir: str, name: str) -> str:
    """Where an evaluator's clips lie, as `CLIP.flac`."""
    return os.path.join(workdir, AUDIO_DIR, name)


def read_items(workdir: str, name: str) -> list[dict[str, Any]]:
    """The items of an evaluator.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = os.path.join(workdir, f"{name}.jsonl")
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete {name}.json beside it and evaluate again"
        ) from error


def read_sums(workdir: str, name: str) -> dict[str, text_metrics.Sums]:
    """The sums behind an evaluator's ratios, by the path of the figure; none where none are kept.

    Raises:
      UserError: the file is damaged.
    """
    path = os.path.join(workdir, f"{name}.sums.json")
    mend = f"delete it and {name}.json beside it, and evaluate again"
    found = read_json(path, mend) or {}
    try:
        return {figure: text_metrics.Sums(**sums) for figure, sums in found.items()}
    except TypeError as error:
        raise UserError(f"{path} is damaged (no sums of ratios): {mend}") from error


def _read_done(path: str) -> Any:
    """`NAME.json`; None where there is none."""
    done = read_json(path)
    if done is None:
        return None
    if not {"use", "settings", "figures"} <= {*done} or not isinstance(done["settings"], Mapping):
        raise UserError(f"{path} is damaged (no outcome of an evaluator): {_MEND}")
    return done


def read_json(path: str, mend: str = _MEND) -> Any:
    """A JSON object; None where there is no such file.

    Args:
      path: of the file.
      mend: what to do where it is damaged.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {mend}") from error
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is damaged (no JSON object): {mend}")
    return value


def to_json(value: Any) -> Any:
    """Named figures as JSON objects, counts of errors as [errors, words], arrays' numbers plain."""
    if isinstance(value, text_metrics.Interval):
        return {name: round(part, 5) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _ratios(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, text_metrics.Ratio):
        yield path, value
    elif isinstance(value, (Mapping, list)):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, part in parts:
            yield from _ratios(part, (*path, str(name)))
