"""Makes `data/run_on_set.tar.xz`: a run on a prepared set, with bf16 moments and frozen parts.

    PYTHONPATH=. python tests/saved_run_on_set.py OUT.tar.xz

Not to be made anew for a later version: that later versions load it is what it is for.
"""

import os
import shutil
import sys
import tarfile
import tempfile

from tiny_run import settings

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
# 16 rows a step: the checkpoint of step 5 stands in the second window of 64 rows
SETTINGS = (
    *("--config.steps=7", "--config.save_every=5", "--config.keep=2"),
    *("--config.data.corpus=", "--config.data.length=128", "--config.data.windows=2"),
    *("--config.data.batch_tokens=2048", "--config.optimizer.moments_dtype=bfloat16"),
    *("--config.init_from=start", "--config.mesh.tensor=1"),
    "--config.frozen=('audio_tower', 'model.layers', 'model.embed_tokens')",
)


def on_set(directory, *overrides):
    """Settings of the run with its set in a directory."""
    tasks = ("text_to_audio", "audio_to_text", "text_only")
    sets = tuple((directory, task, 1.0) for task in tasks)
    return settings(f"--config.data.sets={sets!r}", *SETTINGS, *overrides)


def nobodys(member):
    """Without the names of who made it."""
    return member.replace(uid=0, gid=0, uname="", gname="", deep=False)


def main(out):
    """From the weights of the older run, in bf16, which take half the room."""
    from sound_sources import Listed, encoded, sound

    import bagpiper_jax as bp
    from bagpiper_jax.cli import main as cli
    from bagpiper_jax.preparation.item import Audio, Item
    from bagpiper_jax.preparation.options import Options
    from bagpiper_jax.preparation.prepare import prepare
    from bagpiper_jax.training.loop import train

    out = os.path.abspath(out)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        with tarfile.open(os.path.join(DATA, "run_0.1.tar.xz")) as archive:
            archive.extractall(".", filter="data")
        assert cli(["release", "run", "start"]) == 0
        shutil.rmtree("run")
        items = tuple(
            Item(
                f"{i:02d}",
                (Audio(data=encoded(sound(0.3 + 0.02 * i, seed=i))),),
                f"A tone number {i} swells over a quiet room.",
                domain="sound",
                licence="CC0-1.0",
            )
            for i in range(8)
        )
        prepare([Listed(items)], "set", Options(model="start", timeout=600), workers=1, quiet=True)
        train(on_set("set"), "run")
        shutil.rmtree("run/checkpoints/7")
        shutil.rmtree("run/metrics")
        with tarfile.open(out, "w:xz", preset=9) as archive:
            for name in ("run", "set"):
                archive.add(name, filter=nobodys)
    print(f"{os.path.getsize(out):,} bytes, version {bp.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
