"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from bagpiper_jax.errors import UserError
from bagpiper_jax.training.config import OptimizerConfig
from bagpiper_jax.trees import dotted, nested, split_below


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine to `final_ratio · peak_lr` at the last step; 1 is constant."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.final_ratio * config.peak_lr,
    )


def _slow_encoder(ratio: float) -> optax.GradientTransformation:
    """Scales the updates of the audio tower and its adaptor."""

    def scale(updates, _):
        return {
            name: jax.tree.map(lambda u: ratio * u, part)
            if name in ("audio_tower", "adaptor")
            else part
            for name, part in updates.items()
        }

    return optax.stateless(scale)


# by name: layers are stacked, so the scale of a norm is a matrix too
_DECAYED = ("kernel", "embed_tokens", "lm_head")


def decayed(params) -> dict:
    """Which parameters weight decay pulls to zero: matrices, not norms, biases, `stream_emb`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def _kept_as(dtype, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the state of `inner` in another float type; the arithmetic stays in float32."""

    def cast(tree, to):
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: x.astype(to) if is_float(x) else x, tree)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clip."""
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.moments_dtype != "float32":
        adam = _kept_as(config.moments_dtype, adam)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        adam,
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
        _slow_encoder(config.encoder_lr_ratio),
    )


def split_frozen(params: dict, frozen: Sequence[str]) -> tuple[dict, dict]:
    """Parameters that are trained, and those that are not; `join` puts them together again.

    Args:
      params: nested dict.
      frozen: dotted paths; what lies below them is frozen.

    Raises:
      UserError: a path names nothing, or all is frozen.
    """
    trained, held = split_below(params, frozen, "frozen")
    if not trained:
        raise UserError("config key frozen: nothing is left to train")
    return trained, held


def join(trained: dict, held: dict) -> dict:
    """The inverse of `split_frozen`."""
    return nested(dotted(trained) | dotted(held))
