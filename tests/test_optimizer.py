"""The optimizer of a run against NumPy: AdamW, its clip, its rates, and what it does not touch."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from bagpiper_jax.training.config import OptimizerConfig
from bagpiper_jax.training.optimizer import join, learning_rate, make_optimizer, split_frozen
from bagpiper_jax.training.step import init_state
from bagpiper_jax.trees import dotted, nested

STEPS = 10
CONFIG = OptimizerConfig(
    peak_lr=0.1,
    encoder_lr_ratio=0.25,
    final_ratio=0.3,
    warmup_steps=2,
    b1=0.8,
    b2=0.9,
    eps=1e-2,
    weight_decay=0.5,
    clip=1.0,
    moments_dtype="float32",
)
SHAPES = {
    "audio_tower.layers.fc1.kernel": (2, 3, 4),
    "audio_tower.layers.fc1.bias": (2, 4),
    "adaptor.kernel": (4, 3),
    "model.embed_tokens": (7, 3),
    "model.layers.input_layernorm.weight": (2, 3),
    "model.layers.mlp.up_proj.kernel": (2, 3, 5),
    "lm_head": (7, 3),
    "stream_emb": (4, 3),
}
DECAYED = ("kernel", "embed_tokens", "lm_head")
SLOW = ("audio_tower", "adaptor")
NORMS = (4.0, 0.25, 1.5)  # of the gradients: clipped, not clipped, clipped


def random(seed, norm=None):
    rng = np.random.default_rng(seed)
    flat = {path: rng.standard_normal(shape, np.float32) for path, shape in SHAPES.items()}
    if norm is None:
        return flat
    total = math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in flat.values()))
    return {path: x * np.float32(norm / total) for path, x in flat.items()}


def rate(step, config=CONFIG):
    """Of the update after `step` others."""
    if step < config.warmup_steps:
        return config.peak_lr * step / config.warmup_steps
    done = min((step - config.warmup_steps) / (STEPS - config.warmup_steps), 1)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return config.peak_lr * (config.final_ratio + (1 - config.final_ratio) * cosine)


def reference(params, gradients, config=CONFIG):
    """Decoupled weight decay, arXiv 1711.05101, after a clip by the global norm; in float64."""
    params = {path: x.astype(np.float64) for path, x in params.items()}
    first = {path: np.zeros(x.shape) for path, x in params.items()}
    second = {path: np.zeros(x.shape) for path, x in params.items()}
    for step, grads in enumerate(gradients):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for path, g in grads.items():
            g = g.astype(np.float64) * min(1, config.clip / norm)
            first[path] = config.b1 * first[path] + (1 - config.b1) * g
            second[path] = config.b2 * second[path] + (1 - config.b2) * g**2
            mean = first[path] / (1 - config.b1 ** (step + 1))
            square = second[path] / (1 - config.b2 ** (step + 1))
            change = mean / (np.sqrt(square) + config.eps)
            if path.endswith(DECAYED):
                change = change + config.weight_decay * params[path]
            ratio = config.encoder_lr_ratio if path.startswith(SLOW) else 1
            params[path] = params[path] - ratio * rate(step, config) * change
    return params


def updated(params, gradients, config=CONFIG):
    """What `make_optimizer` makes of them; flat, as `reference` gives it."""
    optimizer = make_optimizer(config, STEPS)
    params = nested(params)
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(nested(grads), state, params)
        params = optax.apply_updates(params, updates)
    return dotted(jax.device_get(params))


def assert_near(found, wanted):
    """To the rounding of float32 in a few operations on values near one."""
    assert set(found) == set(wanted)
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("warmup", [0, 2])
def test_updates_are_those_of_adamw_with_a_clip(warmup):
    config = dataclasses.replace(CONFIG, warmup_steps=warmup)
    params, gradients = random(0), [random(n + 1, norm) for n, norm in enumerate(NORMS)]
    found = updated(params, gradients, config)
    assert_near(found, reference(params, gradients, config))
    for path, value in found.items():
        assert np.abs(value - params[path]).max() > 1e-3, path


@pytest.mark.parametrize("norm", [0.25, 0.999, 1.001, 40.0])
def test_the_clip_is_of_all_gradients_together(norm):
    """No other is needed below it: with a large eps the first update shows the gradient's size."""
    config = dataclasses.replace(CONFIG, warmup_steps=0, eps=1e3, weight_decay=0.0, peak_lr=1e3)
    params = {path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()}
    grads = random(1, norm)
    for path, value in updated(params, [grads], config).items():
        ratio = 0.25 if path.startswith(SLOW) else 1
        wanted = -ratio * grads[path] * min(1, 1 / norm)
        np.testing.assert_allclose(value, wanted, rtol=2e-3, atol=0, err_msg=path)


@pytest.mark.parametrize("setting", ["b1", "b2", "eps", "weight_decay", "clip", "final_ratio"])
def test_every_setting_is_heard(setting):
    config = dataclasses.replace(CONFIG, **{setting: 0.6}, warmup_steps=0)
    params, gradients = random(0), [random(n + 1, norm) for n, norm in enumerate(NORMS)]
    found = updated(params, gradients, config)
    assert_near(found, reference(params, gradients, config))
    plain = updated(params, gradients, dataclasses.replace(CONFIG, warmup_steps=0))
    assert any(np.abs(found[path] - plain[path]).max() > 1e-4 for path in found)


def test_rates_at_the_start_after_the_warm_up_and_at_the_end():
    config = dataclasses.replace(CONFIG, peak_lr=1e-4, warmup_steps=5_000, final_ratio=0.3)
    schedule = learning_rate(config, 600_000)
    wanted = {0: 0.0, 2_500: 5e-5, 5_000: 1e-4, 302_500: 0.65e-4, 600_000: 0.3e-4, 700_000: 0.3e-4}
    found = {step: float(schedule(step)) for step in wanted}
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-12)
    constant = learning_rate(dataclasses.replace(config, final_ratio=1.0), 600_000)
    assert {float(constant(n)) for n in (5_000, 302_500, 600_000)} == {float(np.float32(1e-4))}


def test_the_encoder_and_its_adaptor_alone_learn_at_another_rate():
    config = dataclasses.replace(CONFIG, warmup_steps=0)
    params, gradients = random(0), [random(1, 4.0)]
    slow, plain = (
        updated(params, gradients, dataclasses.replace(config, encoder_lr_ratio=ratio))
        for ratio in (0.25, 1.0)
    )
    for path, before in params.items():
        ratio = 0.25 if path.startswith(SLOW) else 1.0
        change, whole = slow[path] - before, plain[path] - before
        np.testing.assert_allclose(change, ratio * whole, rtol=1e-3, atol=1e-6, err_msg=path)


def test_frozen_parts_have_no_moments_and_do_not_count_in_the_clip():
    frozen = ("audio_tower", "model.layers")
    params = random(0)
    trained, held = split_frozen(nested(params), frozen)
    state = init_state(nested(params), make_optimizer(CONFIG, STEPS), frozen)
    names = {path for path in params if not path.startswith(frozen)}
    adam = state.opt_state[1]
    assert set(dotted(adam.mu)) == set(dotted(adam.nu)) == set(dotted(trained)) == names
    assert set(dotted(held)) == set(params) - names and len(names) == 4
    whole = dotted(join(trained, held))
    assert all(whole[path] is params[path] for path in params) and len(whole) == len(params)

    gradients = [{path: g for path, g in random(1, 4.0).items() if path in names}] * 3
    some = {path: params[path] for path in names}
    assert_near(updated(some, gradients), reference(some, gradients))
