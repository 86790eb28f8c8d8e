"""`bagpiper data filter`."""

from __future__ import annotations

import argparse

from bagpiper_jax.errors import UserError


def add_filter_parser(subparsers) -> argparse.ArgumentParser:
    """Adds the subcommand; `run` carries it out, with what the parser did not know in `args.rest`
    (`--config.KEY=VALUE`)."""
    parser = subparsers.add_parser(
        "filter",
        help="drop rows of a manifest by caption and by sound, and report what was dropped",
        epilog="any setting of the config can be overridden: --config.KEY=VALUE",
    )
    parser.add_argument("--in", dest="source", required=True, help="JSON lines to read")
    parser.add_argument("--out", dest="target", required=True, help="JSON lines to write")
    parser.add_argument("--config", help="an ml_collections file (default: all filters)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def run(args: argparse.Namespace) -> None:
    """Filters a manifest and prints the report.

    Raises:
      UserError: see `run.run_filters` and `run.load_filters`.
    """
    try:
        from bagpiper_jax.preparation.filters import run as work
    except ImportError as e:
        raise UserError(f"filters need: pip install 'bagpiper_jax[filters]' ({e})") from e
    rest = getattr(args, "rest", ())
    if args.config:
        filters = work.load_filters(args.config, rest)
    elif rest:
        raise UserError(f"{' '.join(rest)}: settings need a file, name it with --config")
    else:
        filters = work.filters_from(work.default_config())
    report = work.run_filters(args.source, args.target, filters, progress=not args.quiet)
    print(work.table(report))
