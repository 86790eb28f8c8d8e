"""`bagpiper serve`: options, and the HTTP server with its end."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from bagpiper_jax.errors import UserError
from bagpiper_jax.serving.address import bound, url

TOKEN = "BAGPIPER_TOKEN"


def add_serve_parser(subparsers) -> argparse.ArgumentParser:
    """Adds the subcommand; `run` carries it out."""
    parser = subparsers.add_parser(
        "serve",
        help="answer requests over HTTP, in the form of OpenAI's chat completions",
        epilog=f"{TOKEN} in the environment is the bearer token that requests must bring.",
    )
    parser.add_argument("--checkpoint", help="release or workdir (default: embedded mini model)")
    parser.add_argument("--name", help="of the model for clients (default: the checkpoint's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: float32")
    parser.add_argument("--quantize", choices=("int8",), help="weights of the layers (needs qwix)")
    for name, default, help_ in (
        ("max-sequences", 32, "answers at a time; a guided one counts as two"),
        ("queue", 64, "requests that may wait; more are refused with 429"),
        ("timeout", 300, "seconds for a request"),
        ("max-body", 32, "MiB of a request"),
        ("grace", 30, "seconds that requests have to end when the server is stopped"),
    ):
        help_ += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help=help_)
    return parser


def run(args: argparse.Namespace) -> None:
    """Serves until it is stopped.

    Raises:
      UserError: packages are missing; the checkpoint is damaged; or the address cannot be used.
    """
    try:
        from bagpiper_jax.serving.app import create_app
        from bagpiper_jax.serving.http_server import Server
    except ImportError as e:
        raise UserError(f"serving needs: pip install 'bagpiper_jax[serve]' ({e})") from e
    from bagpiper_jax.inference.pipeline import Pipeline
    from bagpiper_jax.release import MINI

    token = os.environ.get(TOKEN)
    token = None if token is None else token.strip()
    if token == "":
        raise UserError(f"{TOKEN} is empty: give it a token, or unset it")
    checkpoint = args.checkpoint or MINI
    # before the model is loaded: a port in use is told at once
    with bound(args.host, args.port) as listener:
        pipeline = Pipeline.load(
            checkpoint, dtype=args.dtype, max_sequences=args.max_sequences, quantize=args.quantize
        )
        print("bagpiper: compiling the model", file=sys.stderr)
        pipeline.warm_up()
        model = args.name or os.path.basename(os.path.abspath(checkpoint))
        app = create_app(
            pipeline,
            model=model,
            queue=args.queue,
            timeout=args.timeout,
            max_body=args.max_body * 2**20,
            token=token,
        )
        if token is None and args.host not in ("127.0.0.1", "::1", "localhost"):
            print(f"bagpiper: whoever reaches {args.host} may ask: set {TOKEN}", file=sys.stderr)
        print(f"bagpiper: {model} at {url(listener)}/v1", file=sys.stderr)
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        Server(app, grace=args.grace).run([listener])


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value
