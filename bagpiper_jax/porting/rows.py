"""The tables, one per part; the left column is the checkpoint's words, the right column ours."""

from bagpiper_jax.porting.table import (
    CHANNELS,
    CONV1D,
    CONV1D_TRANSPOSED,
    CONV2D,
    LINEAR,
    Row,
    prefixed,
)

# Qwen3ForCausalLM
QWEN3 = (
    Row("model.embed_tokens.weight", "model.embed_tokens", padded=True),
    Row("lm_head.weight", "lm_head", padded=True),
    Row("model.norm.weight", "model.norm.weight"),
    Row("model.layers.#.input_layernorm.weight", "model.layers.input_layernorm.weight"),
    Row("model.layers.#.self_attn.*_proj.weight", "model.layers.self_attn.*_proj.kernel", LINEAR),
    Row("model.layers.#.self_attn.*_norm.weight", "model.layers.self_attn.*_norm.weight"),
    Row(
        "model.layers.#.post_attention_layernorm.weight",
        "model.layers.post_attention_layernorm.weight",
    ),
    Row("model.layers.#.mlp.*_proj.weight", "model.layers.mlp.*_proj.kernel", LINEAR),
)

# Qwen3OmniMoeAudioEncoder
AUDIO_TOWER = (
    Row("conv2d*.weight", "conv2d*.kernel", CONV2D),
    Row("conv2d*.bias", "conv2d*.bias"),
    Row("conv_out.weight", "conv_out.kernel", LINEAR),
    Row(
        "layers.#.self_attn_layer_norm.weight",
        "layers.self_attn_layer_norm.scale",
    ),
    Row("layers.#.self_attn_layer_norm.bias", "layers.self_attn_layer_norm.bias"),
    Row("layers.#.final_layer_norm.weight", "layers.final_layer_norm.scale"),
    Row("layers.#.final_layer_norm.bias", "layers.final_layer_norm.bias"),
    Row("layers.#.self_attn.*_proj.weight", "layers.*_proj.kernel", LINEAR),
    Row("layers.#.self_attn.*_proj.bias", "layers.*_proj.bias"),
    Row("layers.#.fc*.weight", "layers.fc*.kernel", LINEAR),
    Row("layers.#.fc*.bias", "layers.fc*.bias"),
    Row("ln_post.weight", "ln_post.scale"),
    Row("ln_post.bias", "ln_post.bias"),
    Row("proj*.weight", "proj*.kernel", LINEAR),
    Row("proj*.bias", "proj*.bias"),
)

_HUBERT = (
    Row("masked_spec_embed", "masked_spec_embed", optional=True),
    Row(
        "feature_extractor.conv_layers.*.conv.weight",
        "feature_extractor.conv_layers.*.conv.kernel",
        CONV1D,
    ),
    Row(
        "feature_extractor.conv_layers.*.layer_norm.weight",
        "feature_extractor.conv_layers.*.layer_norm.scale",
    ),
    Row(
        "feature_extractor.conv_layers.*.layer_norm.bias",
        "feature_extractor.conv_layers.*.layer_norm.bias",
    ),
    Row("feature_projection.layer_norm.weight", "feature_projection.layer_norm.scale"),
    Row("feature_projection.layer_norm.bias", "feature_projection.layer_norm.bias"),
    Row("feature_projection.projection.weight", "feature_projection.projection.kernel", LINEAR),
    Row("feature_projection.projection.bias", "feature_projection.projection.bias"),
    Row("encoder.pos_conv_embed.conv.bias", "pos_conv_embed.bias"),
    Row(
        "encoder.pos_conv_embed.conv.parametrizations.weight.original*",
        "pos_conv_embed.original*",
        CONV1D,
    ),
    Row("encoder.layer_norm.weight", "layer_norm.scale"),
    Row("encoder.layer_norm.bias", "layer_norm.bias"),
    Row("encoder.layers.#.attention.*_proj.weight", "layers.*_proj.kernel", LINEAR),
    Row("encoder.layers.#.attention.*_proj.bias", "layers.*_proj.bias"),
    Row("encoder.layers.#.feed_forward.*_dense.weight", "layers.*_dense.kernel", LINEAR),
    Row("encoder.layers.#.feed_forward.*_dense.bias", "layers.*_dense.bias"),
    Row("encoder.layers.#.layer_norm.weight", "layers.layer_norm.scale"),
    Row("encoder.layers.#.layer_norm.bias", "layers.layer_norm.bias"),
    Row("encoder.layers.#.final_layer_norm.weight", "layers.final_layer_norm.scale"),
    Row("encoder.layers.#.final_layer_norm.bias", "layers.final_layer_norm.bias"),
)

_SEMANTIC = (
    Row("conv*.weight", "conv*.kernel", CONV1D),
    Row("conv_blocks.*.conv.weight", "conv_blocks.*.conv.kernel", CONV1D),
    Row("conv_blocks.*.conv.bias", "conv_blocks.*.conv.bias"),
    Row(
        "conv_blocks.*.res_units.*.conv*.weight",
        "conv_blocks.*.res_units.*.conv*.kernel",
        CONV1D,
    ),
)

# XcodecModel
XCODEC = (
    Row("acoustic_*.conv*.weight", "acoustic_*.conv*.kernel", CONV1D),
    Row("acoustic_*.conv*.bias", "acoustic_*.conv*.bias"),
    Row("acoustic_*.snake1.alpha", "acoustic_*.snake1.alpha", CHANNELS),
    Row("acoustic_*.block.*.snake1.alpha", "acoustic_*.block.*.snake1.alpha", CHANNELS),
    Row(
        "acoustic_decoder.block.*.conv_t1.weight",
        "acoustic_decoder.block.*.conv_t1.kernel",
        CONV1D_TRANSPOSED,
    ),
    Row("acoustic_*.block.*.conv*.weight", "acoustic_*.block.*.conv*.kernel", CONV1D),
    Row("acoustic_*.block.*.conv*.bias", "acoustic_*.block.*.conv*.bias"),
    Row(
        "acoustic_*.block.*.res_unit*.conv*.weight",
        "acoustic_*.block.*.res_unit*.conv*.kernel",
        CONV1D,
    ),
    Row("acoustic_*.block.*.res_unit*.conv*.bias", "acoustic_*.block.*.res_unit*.conv*.bias"),
    Row(
        "acoustic_*.block.*.res_unit*.snake*.alpha",
        "acoustic_*.block.*.res_unit*.snake*.alpha",
        CHANNELS,
    ),
    *prefixed(_SEMANTIC, "encoder_semantic.", "encoder_semantic."),
    *(
        row._replace(optional=True)
        for row in prefixed(_SEMANTIC, "decoder_semantic.", "decoder_semantic.")
    ),
    Row("fc1.weight", "fc1.kernel", LINEAR, optional=True),
    Row("fc1.bias", "fc1.bias", optional=True),
    Row("fc*.weight", "fc*.kernel", LINEAR),
    Row("fc*.bias", "fc*.bias"),
    Row("quantizer.quantizers.#.codebook.embed", "quantizer.embed"),
    Row("quantizer.quantizers.#.codebook.*", "quantizer.*", optional=True),
    *prefixed(_HUBERT, "semantic_model.", "semantic_model."),
)

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OWN_CODEC = "codec."  # before the paths of an X-codec beside a model's
# where the parts lie in a Bagpiper checkpoint
TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."
CODEC = "multimodal_io_dict.discrete_audio.codec_model."

# the whole of a Bagpiper checkpoint, the codec's weights under "codec."
BAGPIPER = (
    *QWEN3,
    Row("stream_emb.weight", "stream_emb"),
    Row("adaptor.continuous_audio.weight", "adaptor.kernel", LINEAR),
    Row("adaptor.continuous_audio.bias", "adaptor.bias"),
    *prefixed(AUDIO_TOWER, TOWER, "audio_tower."),
    *prefixed(XCODEC, CODEC, OWN_CODEC),
)
