"""Shapes of a small X-codec for tests."""

from bagpiper_jax.modeling.hubert import HubertConfig
from bagpiper_jax.modeling.xcodec_model import XCodecConfig

CONFIG = XCodecConfig(
    encoder_hidden_size=4,
    decoder_hidden_size=64,
    acoustic_hidden_size=16,
    codebook_size=64,
    num_quantizers=8,
    semantic=HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
)
