"""The optimizer of a run."""

from __future__ import annotations

import jax
import optax

from bagpiper_jax.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine to `final_ratio · peak_lr` at the last step."""
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


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clip."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
        _slow_encoder(config.encoder_lr_ratio),
    )
