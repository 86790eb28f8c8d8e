"""`bagpiper simulate caption|requests|traces|assemble|judge`."""

from __future__ import annotations

import argparse
import importlib

from bagpiper_jax.errors import UserError

STAGES = {
    "caption": ("captioner.CAPTION_STAGE", "recordings → rich captions"),
    "requests": ("requests.REQUESTS_STAGE", "captions → personas and requests"),
    "traces": ("traces.TRACES_STAGE", "requests → reasoning, and answers"),
    "assemble": ("assemble.ASSEMBLE_STAGE", "all of it → dialogues"),
    "judge": ("judge.JUDGE_STAGE", "dialogues → scores; only what passes goes on"),
}


def add_simulate_parser(subparsers) -> argparse.ArgumentParser:
    """Adds the subcommand; `run` carries it out, with what the parser did not know in `args.rest`
    (`--config.KEY=VALUE`)."""
    parser = subparsers.add_parser(
        "simulate",
        help="make rich captions and dialogues with language models",
        epilog="any setting of the config can be overridden: --config.KEY=VALUE",
    )
    parser.add_argument(
        "stage",
        choices=STAGES,
        help="; ".join(f"{name}: {what}" for name, (_, what) in STAGES.items()),
    )
    parser.add_argument("--in", dest="source", required=True, help="JSON lines to read")
    parser.add_argument("--out", dest="target", required=True, help="JSON lines to write")
    parser.add_argument("--config", required=True, help="an ml_collections file of experiments/")
    parser.add_argument(
        "--ask-again", action="store_true", help="ask anew where earlier answers were bad"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def run(args: argparse.Namespace) -> None:
    """Runs a stage and prints its summary.

    Raises:
      UserError: see `stage.run_stage` and `config.load_settings`.
    """
    from bagpiper_jax.simulation.config import load_settings

    settings = load_settings(args.config, getattr(args, "rest", ()))
    module, name = STAGES[args.stage][0].split(".")
    try:
        stage = getattr(importlib.import_module(f"bagpiper_jax.simulation.{module}"), name)
        from bagpiper_jax.simulation.stage import run_stage
    except ImportError as e:
        raise UserError(f"simulation needs: pip install 'bagpiper_jax[simulate]' ({e})") from e
    summary = run_stage(
        stage,
        args.source,
        args.target,
        settings,
        ask_again=args.ask_again,
        progress=not args.quiet,
    )
    kinds = ("out", "rejected", "quarantined")
    counts = ", ".join(f"{summary[kind]} {kind}" for kind in kinds)
    print(f"{args.target}: {summary['in']} in, {counts}")
    for reason, count in summary["reasons"].items():
        print(f"  {count} × {reason}")
    if "paid_now" in summary:
        now, usd = summary["paid_now"], sum(c["usd"] for c in summary["paid_in_all"].values())
        tokens = f"{now['text']} text, {now['audio']} audio, {now['output']} output tokens"
        print(f"  {now['requests']} answers, {tokens}; ${now['usd']:.4f} now, ${usd:.4f} in all")
