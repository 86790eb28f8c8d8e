"""Runs the evaluators that a config names, one after the other: `bagpiper evaluate`.

A killed evaluation goes on where it stopped when it is started again with the same workdir. What is
done is read, not measured again, and the results are those of an undisturbed one, to the last byte.
"""

from __future__ import annotations

import os
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import registry, tables, workdir
from bagpiper_jax.evaluation.config import EvaluationConfig
from bagpiper_jax.evaluation.context import Context
from bagpiper_jax.evaluation.figures import RESULTS_FILE, Evaluation
from bagpiper_jax.evaluation.report import write_report
from bagpiper_jax.evaluation.sampling_choice import CHOSEN, choose_sampling
from bagpiper_jax.files import make_directory, write_json, write_text
from bagpiper_jax.json_lines import Journal

MARKDOWN_FILE, PAGE_FILE = "results.md", "results.html"


def evaluate(config: EvaluationConfig, directory: str, *, choose: bool = False) -> dict[str, Any]:
    """Runs every evaluator of a config and writes the results.

    `directory` gets `results.json`, `results.md` and `results.html`; of each evaluator `NAME.json`
    (figures), `NAME.jsonl` (items), `NAME.sums.json` (for comparisons) and `audio/NAME/`; and
    `run.json` and `outputs.jsonl`, from which it resumes.

    Args:
      config: what to evaluate.
      directory: where everything goes.
      choose: first choose the audio sampling on development scenes, kept beside the weights.

    Returns:
      what `results.json` holds.

    Raises:
      UserError: a package is missing, the checkpoint does not load, or the directory holds an
        evaluation of other weights, files or settings, or one for which no sampling was chosen.
    """
    if choose and config.audio:
        raise UserError("settings of config.audio would hide what --choose-sampling chooses")
    for instance in config.evaluators:
        registry.require(instance.use)
    make_directory(directory)
    weights = workdir.weights_fingerprint(config.checkpoint)
    with Journal(os.path.join(directory, workdir.OUTPUTS_FILE)) as outputs:
        context = Context(
            config.checkpoint,
            config.corpus,
            config.seed,
            outputs,
            weights,
            config.audio,
            config.dtype,
            config.mesh,
        )
        if choose:
            _choose(context, directory)
        head = workdir.open_head(directory, context, weights)
        for instance in config.evaluators:  # what does not fit is told before anything runs
            workdir.read_outcome(directory, *instance)
        for number, instance in enumerate(config.evaluators, 1):
            done = workdir.read_outcome(directory, *instance) is not None
            state = ": done before" if done else ""
            print(f"{number}/{len(config.evaluators)} {instance.name}{state}", flush=True)
            if not done:
                outcome = registry.find(instance.use)(context, **instance.settings)
                workdir.write_outcome(directory, *instance, outcome)
        names = [i.name for i in config.evaluators]
        results = {
            **head,
            "judges": registry.judges(i.use for i in config.evaluators),
            "versions_of": workdir.versions_of(directory, names, head.get("versions")),
            "evaluators": {i.name: {"use": i.use, **i.settings} for i in config.evaluators},
            **{i.name: workdir.read_outcome(directory, *i) for i in config.evaluators},
        }
        write_json(os.path.join(directory, RESULTS_FILE), results)
        write_text(os.path.join(directory, MARKDOWN_FILE), tables.results_markdown(results))
        page = os.path.join(directory, PAGE_FILE)
        write_report(page, [Evaluation("this run", results)], directory, context)
    return results


def _choose(context: Context, directory: str) -> None:
    """Chooses the sampling, unless that was done before the evaluation was begun."""
    begun = workdir.read_json(os.path.join(directory, workdir.HEAD_FILE))
    if begun is not None:
        if begun.get("sampling_source") != CHOSEN:
            raise UserError(
                f"{directory} was begun without --choose-sampling: name another workdir, or leave "
                "the flag out"
            )
        print("the sampling was chosen when this evaluation was begun", flush=True)
        return
    chosen = choose_sampling(
        context.pipeline,
        context.corpus,
        context.whisper,
        context.checkpoint,
        counts={"digits": 20},  # letters are learned much later: until then they are noise
        seed=context.seed,
    )
    context.pipeline.sampling.update(chosen)
