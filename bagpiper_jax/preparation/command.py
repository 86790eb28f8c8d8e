"""`bagpiper data prepare`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.prepared import QUARANTINE_FILE
from bagpiper_jax.preparation.options import KEEP, Options
from bagpiper_jax.preparation.prepare import describe, prepare


def add_prepare_parser(subparsers) -> None:
    """Adds `prepare` to the subcommands of `bagpiper data`."""
    parser = subparsers.add_parser(
        "prepare",
        help="recordings and texts into shards, ready to train on",
        description="Decodes, checks, cuts, encodes and deduplicates recordings into ArrayRecord "
        "shards. Interrupted, it goes on where it stopped; the result is the same byte for byte.",
    )
    parser.set_defaults(command=run_prepare)
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        help="folder, manifest, Parquet, tars, tfds:DIR/NAME/VERSION, or settings as JSON, such as "
        '{"path": "a.parquet", "columns": {"caption": "sentence"}}; may be repeated',
    )
    parser.add_argument("--out", required=True, help="directory of the prepared set")
    parser.add_argument("--name", default="", help="of the set (default: of its directory)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--runner", choices=("local", "beam"), default="local")
    parser.add_argument(
        "--beam-options",
        default="--runner=DirectRunner",
        help="options of the Beam pipeline, in one string (default: %(default)s)",
    )
    own = Options()
    parser.add_argument("--model", help="directory whose tokenizer and codec are used")
    parser.add_argument("--codec", help="codec.npz to use instead of the model's")
    parser.add_argument("--no-codes", dest="codes", action="store_false", help="no codec codes")
    parser.add_argument("--keep", choices=KEEP, help=f"of what is heard (default: {own.keep})")
    parser.add_argument(
        "--captioned-pieces",
        action="store_true",
        help="keep the pieces, without caption, of captioned recordings over 30 s",
    )
    parser.add_argument(
        "--keep-duplicates", dest="deduplicate", action="store_false", help="leave none out"
    )
    parser.add_argument("--max-hours", type=float, help=f"of a recording ({own.max_hours:g})")
    parser.add_argument("--shards", type=int, help="number of shards (default: by the sources)")
    parser.add_argument("--timeout", type=float, help=f"seconds for a file ({own.timeout:g})")
    parser.add_argument("--memory-gb", type=float, help=f"for a file ({own.memory_gb:g})")


def run_prepare(args: argparse.Namespace) -> None:
    """Runs `bagpiper data prepare`.

    Raises:
      UserError: see `prepare`.
    """
    from bagpiper_jax.preparation.sources import open_source

    told = {f.name: getattr(args, f.name) for f in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in told.items() if value is not None})
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be 1 or more, not {args.workers}")
    beam_options = shlex.split(args.beam_options) if args.runner == "beam" else None
    prepared = prepare(
        [open_source(source) for source in args.source],
        args.out,
        options,
        name=args.name,
        workers=args.workers,
        beam_options=beam_options,
    )
    print(describe(prepared))
    if prepared.info["quarantine"]:
        kinds = ", ".join(f"{kind} {n}" for kind, n in prepared.info["quarantine"].items())
        print(f"quarantined: {kinds}; each in {os.path.join(args.out, QUARANTINE_FILE)}")
