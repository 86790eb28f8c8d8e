"""`bagpiper evaluate`: its arguments, and what they start."""

from __future__ import annotations

import argparse
import os
from typing import Any

from bagpiper_jax.errors import UserError


def add_evaluate_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds the subcommand; other arguments, `--config.KEY=VALUE`, are left in `rest`."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a checkpoint, or compare measurements",
        epilog="any setting of the config can be overridden: --config.KEY=VALUE; "
        "the same command goes on where it was killed",
    )
    parser.add_argument("--config", help="default: experiments/evaluate_mini.py of the clone")
    parser.add_argument("--workdir", required=True, help="where results go")
    parser.add_argument(
        "--choose-sampling",
        action="store_true",
        help="first choose the audio sampling on the development split, kept beside the weights",
    )
    parser.add_argument(
        "--keep", action="store_true", help="put the figures beside the weights, for the report"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="measure nothing: put the evaluations of these workdirs into one table",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Runs it.

    Raises:
      UserError: bad arguments; see `evaluate` and `compare`.
    """
    try:
        from bagpiper_jax.evaluation import compare, evaluate
        from bagpiper_jax.evaluation.config import experiment, load_config
        from bagpiper_jax.evaluation.figures import RESULTS_FILE, figures_of
    except ImportError as e:
        raise UserError(f"evaluation needs: pip install 'bagpiper_jax[eval]' ({e})") from e
    from bagpiper_jax.release import copy_notes

    if args.compare:
        if args.config or args.rest or args.keep or args.choose_sampling:
            raise UserError("--compare takes the workdirs of evaluations and --workdir alone")
        compare.compare(args.compare, args.workdir)
        for name in (compare.MARKDOWN_FILE, compare.PAGE_FILE):
            print(os.path.join(args.workdir, name))
        return
    config = load_config(args.config or experiment("evaluate_mini"), args.rest)
    if args.keep and config.audio:
        raise UserError("--keep is for figures of the checkpoint's own sampling: no config.audio")
    results = evaluate.evaluate(config, args.workdir, choose=args.choose_sampling)
    if args.keep:
        copy_notes(args.workdir, config.checkpoint, (RESULTS_FILE,))
    for line in figures_of(results):
        print(line)
    for name in (evaluate.MARKDOWN_FILE, evaluate.PAGE_FILE):
        print(os.path.join(args.workdir, name))
