"""`bagpiper data inspect`."""

from __future__ import annotations

import argparse
import os
import sys

from bagpiper_jax.errors import UserError


def add_inspect_parser(subparsers) -> None:
    """Adds `inspect` to the subcommands of `bagpiper data`."""
    parser = subparsers.add_parser(
        "inspect",
        help="a page to look at prepared sets by",
        description="Writes one self-contained HTML page about prepared sets: players and "
        "spectrograms, captions and dialogues, lengths, counts, the mixture, packed rows, and "
        "what was quarantined.",
    )
    parser.set_defaults(command=run_inspect)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a prepared set")
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--examples", type=int, default=12, help="records to show (%(default)s)")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a plan (%(default)s)")
    parser.add_argument("--length", type=int, default=8192, help="positions of a row (%(default)s)")
    parser.add_argument("--windows", type=int, default=128, help="its mel windows (%(default)s)")
    parser.add_argument(
        "--mixture",
        action="append",
        metavar="TASK=SHARE",
        help="share of the tokens; may be repeated (default: 2:1:1 of the base tasks, and a plan "
        "of the dialogues)",
    )
    parser.add_argument("--model", help="directory of the model that the sets were prepared with")
    parser.add_argument("--codec", help="codec.npz that they were prepared with")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of records and rows")
    parser.add_argument(
        "--max-mb", type=float, default=32.0, help="of audio on the page (%(default)g)"
    )


def run_inspect(args: argparse.Namespace) -> None:
    """Runs `bagpiper data inspect`.

    Raises:
      UserError: see `inspect_sets`.
    """
    from bagpiper_jax.input_pipeline.packing import RowShape
    from bagpiper_jax.preparation.inspect.write import inspect_sets
    from bagpiper_jax.preparation.options import Options

    told = {name: getattr(args, name) for name in ("model", "codec")}
    notes = inspect_sets(
        args.directories,
        args.out,
        options=Options(**{name: value for name, value in told.items() if value}),
        examples=args.examples,
        rows=args.rows,
        shape=RowShape(args.length, args.windows),
        mixture=_mixture(args.mixture),
        seed=args.seed,
        max_mb=args.max_mb,
    )
    for note in notes:
        print(f"bagpiper: {note}", file=sys.stderr)
    print(f"{args.out}: {os.path.getsize(args.out) / 1e6:.1f} MB")


def _mixture(told: list[str] | None) -> dict[str, float] | None:
    if not told:
        return None
    mixture = {}
    for entry in told:
        task, _, share = entry.partition("=")
        try:
            mixture[task] = float(share)
        except ValueError:
            mixture[task] = -1.0
        if not 0 < mixture[task] < float("inf"):
            raise UserError(f"--mixture {entry}: say it like text_to_audio=2")
    return mixture
