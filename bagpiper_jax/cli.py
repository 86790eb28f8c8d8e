"""The `bagpiper` command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import command as evaluating
from bagpiper_jax.preparation import command as preparing
from bagpiper_jax.preparation.filters import commands as filtering
from bagpiper_jax.preparation.inspect import commands as inspecting
from bagpiper_jax.serving import command as serving
from bagpiper_jax.simulation import commands as simulating

# the clone that the package is run from, if it is run from one
_CLONE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in (
        _train,
        _compile,
        evaluating.run,
        filtering.run,
        simulating.run,
    ):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        args.command(args)
    except UserError as e:
        print(f"bagpiper: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bagpiper: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bagpiper", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    describe = commands.add_parser("describe", help="write a caption for a recording")
    describe.set_defaults(command=_describe)
    describe.add_argument("audio", help="any audio file of 0.1 to 30 s")
    _add_model(describe)
    describe.add_argument("--temperature", type=float, help="0 is greedy (default of the model)")

    render = commands.add_parser("render", help="make audio from a caption")
    render.set_defaults(command=_render)
    render.add_argument("caption", help="what is to be heard")
    render.add_argument("-o", "--out", required=True, help="file to write: .wav, .flac, .ogg")
    _add_model(render)
    render.add_argument("--temperature", type=float, help="0 is greedy (default of the model)")
    render.add_argument("--cfg", type=float, help="guidance scale, 1 is none")
    render.add_argument("--min-rows", type=int, help="rows of 20 ms before the audio may end")

    train = commands.add_parser(
        "train",
        help="train, or resume, a run",
        epilog="any setting of the config can be overridden: --config.KEY=VALUE",
    )
    train.set_defaults(command=_train)
    train.add_argument("--config", required=True, help="an ml_collections file of experiments/")
    train.add_argument("--workdir", required=True, help="where everything of the run goes")
    train.add_argument("--resume", action="store_true", help="go on, or fail: no start at step 0")
    train.add_argument("--profile", action="store_true", help="trace a few steps (XProf, Perfetto)")
    train.add_argument("--wandb", default="", metavar="PROJECT", help="Weights & Biases too")
    pod = train.add_argument_group("several processes, one run")
    pod.add_argument("--coordinator", help="host:port of process 0, or auto if the cluster tells")
    pod.add_argument("--num-processes", type=int)
    pod.add_argument("--process-id", type=int)

    compiler = commands.add_parser(
        "compile",
        help="compile a run's train step for TPU slices, here, and tell what it takes",
        epilog="any setting of the config can be overridden: --config.KEY=VALUE",
    )
    compiler.set_defaults(command=_compile)
    compiler.add_argument("--config", required=True, help="an ml_collections file of experiments/")
    compiler.add_argument("--topology", required=True, help="a slice, like v5p:4x4x8 or v5e:16x16")
    compiler.add_argument("--slices", type=int, default=1, help="number of such slices")
    compiler.add_argument("--json", help="file to write the report to, or - for standard output")
    compiler.add_argument(
        "--largest", action="store_true", help="raise the batch until the slice does not hold it"
    )

    data = commands.add_parser("data", help="from recordings to data to train on")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    preparing.add_prepare_parser(data_commands)
    inspecting.add_inspect_parser(data_commands)
    filtering.add_filter_parser(data_commands).set_defaults(command=filtering.run)
    simulating.add_simulate_parser(commands).set_defaults(command=simulating.run)

    release = commands.add_parser("release", help="write a run's weights as a small directory")
    release.set_defaults(command=_release)
    release.add_argument("workdir", help="of the run")
    release.add_argument("out", help="directory to write")
    release.add_argument("--step", type=int, help="of a kept checkpoint (default: the latest)")
    release.add_argument(
        "--average",
        action="append",
        default=[],
        metavar="DIR",
        help="a run or release of the same training whose weights go into a mean; may be repeated, "
        "the same one too, which then weighs more",
    )

    convert = commands.add_parser("convert", help="weights to and from PyTorch")
    convert.set_defaults(command=_convert)
    convert.add_argument("source", help="ESPnet or DeepSpeed .pt, or a directory with weights")
    convert.add_argument("target", help="file (espnet) or directory to write")
    convert.add_argument("--to", required=True, help="espnet, safetensors, orbax or qwen3")
    convert.add_argument("--config", help="preset that the source fits (default: bagpiper_8b)")
    convert.add_argument("--tower", help="Qwen3-Omni directory: SOURCE is Qwen3, the model is new")
    convert.add_argument("--codec", help="X-codec directory, for a new model")
    convert.add_argument("--tokenizer", help="Qwen3's tokenizer.json, to lie beside the weights")
    convert.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: as they are")
    convert.add_argument("--dry-run", action="store_true", help="say what would be written")
    convert.add_argument(
        "--verify",
        nargs="?",
        const="numbers",
        choices=("bits", "numbers"),
        help="read back, compare every bit, and run both sides, the source in PyTorch; or bits",
    )

    serving.add_serve_parser(commands).set_defaults(command=serving.run)

    evaluating.add_evaluate_parser(commands).set_defaults(command=evaluating.run)

    report = commands.add_parser("report", help="short training, then a report of the mini model")
    report.set_defaults(command=_report)
    report.add_argument("--out", default="runs/demo", help="where the report goes")

    demo = commands.add_parser("demo", help="a page to describe, edit and render clips on")
    demo.set_defaults(command=_demo)
    demo.add_argument("--checkpoint", help="release or workdir (default: embedded mini model)")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    demo.add_argument("--port", type=int, default=7860, help="0 takes a free one (%(default)s)")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="release or workdir (default: embedded mini model)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")


def _describe(args) -> None:
    from bagpiper_jax.audio import load_audio

    wav = load_audio(args.audio)  # before JAX starts: bad files are told at once
    pipeline = _pipeline(args)
    settings = _override(pipeline.sampling["text"], temperature=args.temperature)
    print(pipeline.describe(wav, sampling=settings, seed=args.seed))


def _render(args) -> None:
    from bagpiper_jax.audio import save_audio, writable_format

    writable_format(args.out)
    pipeline = _pipeline(args)
    settings = _override(
        pipeline.sampling["audio"],
        temperature=args.temperature,
        cfg=args.cfg,
        min_rows=args.min_rows,
    )
    wav = pipeline.render(args.caption, sampling=settings, seed=args.seed)
    save_audio(args.out, wav, pipeline.codec.sample_rate)
    print(f"{args.out}: {len(wav) / pipeline.codec.sample_rate:.2f} s")


def _pipeline(args):
    from bagpiper_jax.inference.pipeline import Pipeline
    from bagpiper_jax.release import MINI

    return Pipeline.load(args.checkpoint or MINI)


def _override(settings, **values):
    return dataclasses.replace(settings, **{k: v for k, v in values.items() if v is not None})


def _train(args) -> None:
    if not args.coordinator and (args.num_processes, args.process_id) != (None, None):
        # each of them would train alone, all in one workdir
        raise UserError("--num-processes and --process-id need --coordinator HOST:PORT")
    try:
        from bagpiper_jax.training.config import load_config
        from bagpiper_jax.training.hosts import connect
        from bagpiper_jax.training.loop import train
    except ImportError as e:
        raise UserError(f"training needs: pip install 'bagpiper_jax[train]' ({e})") from e
    run = load_config(["--config", args.config, *args.rest])
    watch = None
    if args.coordinator:
        watch = connect(args.coordinator, args.num_processes, args.process_id)
    from bagpiper_jax.samples import SceneSamples

    # batches that were made ahead and are not needed are freed by the tracker, which warns of them
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    options = {"must_resume": args.resume, "profile": args.profile, "wandb": args.wandb}
    try:
        train(run, args.workdir, SceneSamples, **options)
    except (Exception, KeyboardInterrupt) as e:
        if watch is None:
            raise
        watch.fail(e)


def _compile(args) -> None:
    from bagpiper_jax.files import write_json
    from bagpiper_jax.training.aot_environment import prepare_environment

    prepare_environment()
    try:
        from bagpiper_jax.training import aot
        from bagpiper_jax.training.config import load_config
    except ImportError as e:
        raise UserError(f"compiling needs: pip install 'bagpiper_jax[train,tpu]' ({e})") from e
    run = load_config(["--config", args.config, *args.rest])
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    try:
        report = aot.compile_report(run, args.topology, args.slices)
    except aot.TooSmall as e:
        say(f"{e}; trying larger ones")
        report = aot.next_that_fits(run, args.topology, args.slices, say)
        say(f"{report['topology']} holds it")
        _print_report(aot, report, args.json)
        raise UserError(str(e)) from e
    piped = args.json == "-"  # it takes one document
    if not piped:
        _print_report(aot, report, args.json)  # before a search that may fail
    try:
        if args.largest:
            rows = aot.largest_batch(run, args.topology, args.slices, say)
            report["largest_rows_per_group"] = rows
    finally:
        if piped:
            _print_report(aot, report, args.json)
    if args.largest and not piped:
        print(aot.table(report).splitlines()[-1])
        if args.json:
            write_json(args.json, report)


def _print_report(aot, report: dict, path: str | None) -> None:
    from bagpiper_jax.files import write_json

    if path == "-":
        print(json.dumps(report, indent=1))
        return
    print(aot.table(report))
    if path:
        write_json(path, report)


def _release(args) -> None:
    from bagpiper_jax.averaging import average_weights
    from bagpiper_jax.files import check_vacant
    from bagpiper_jax.release import copy_notes, load_assets, save_release

    check_vacant(args.out)
    assets = load_assets(args.workdir)
    weights = average_weights([args.workdir, *args.average], args.step)
    save_release(args.out, weights, assets)
    # sampling was chosen for the latest weights of one run, not for a mean
    earlier = args.average or args.step is not None
    chosen = () if earlier else ("sampling.json", "sampling_trials.json")
    copy_notes(args.workdir, args.out, (*chosen, "metrics.jsonl"))
    size = sum(os.path.getsize(os.path.join(args.out, f)) for f in os.listdir(args.out))
    print(f"{args.out}: {size / 2**20:.1f} MB")


def _convert(args) -> None:
    try:
        from bagpiper_jax.porting.convert import convert
    except ImportError as e:
        raise UserError(f"converting needs: pip install 'bagpiper_jax[convert]' ({e})") from e

    lines = convert(
        args.source,
        args.target,
        args.to,
        config=args.config,
        tower=args.tower,
        codec=args.codec,
        tokenizer=args.tokenizer,
        dtype=args.dtype,
        dry_run=args.dry_run,
        verify=args.verify,
    )
    print("\n".join(lines))


def _report(args) -> None:
    try:
        from bagpiper_jax.evaluation.demo import run_demo
    except ImportError as e:
        raise UserError(f"it needs: pip install 'bagpiper_jax[train,eval]' ({e})") from e

    run_demo(args.out)


def _demo(args) -> None:
    try:
        from bagpiper_jax.serving.page import serve
    except ImportError as e:
        raise UserError(f"the page needs: pip install 'bagpiper_jax[page]' ({e})") from e
    from bagpiper_jax.release import MINI

    corpus = os.path.join(_CLONE, "data", "mini")
    serve(args.checkpoint or MINI, corpus, args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())
