"""Copies weights of the PyTorch originals into the modules here, all of them or not at all."""

import numpy as np
from flax import nnx

_LEAF = {"kernel": "weight", "scale": "weight"}
_IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def original_name(path, layer=None):
    """Name in the original of a parameter here; `layer` of the stacked ones."""
    parts = [str(p) for p in path]
    if parts[0] == "layers":
        parts.insert(1, str(layer))
        if parts[2] in _IN_ATTENTION:  # the encoder's layers have no module for it here
            parts.insert(2, "self_attn")
    parts[-1] = _LEAF.get(parts[-1], parts[-1])
    if parts[-1].startswith("embed_tokens"):
        parts.append("weight")
    return ".".join(parts)


def convert(value, leaf):
    """A tensor of the original → the array here."""
    value = value.detach().numpy()
    if leaf == "kernel" and value.ndim == 4:
        return value.transpose(3, 2, 1, 0)  # [out, in, mel, time] → [time, mel, in, out]
    return value.T if leaf == "kernel" else value


def copy_weights(module, original):
    """Sets every parameter of `module` from the PyTorch module `original`.

    Rows that a table here has in excess stay as they are.
    """
    tensors = dict(original.named_parameters())
    state = nnx.state(module, nnx.Param)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        if path[0] == "layers":
            names = [original_name(path, i) for i in range(len(variable[...]))]
            value = np.stack([convert(tensors.pop(name), path[-1]) for name in names])
        else:
            value = convert(tensors.pop(original_name(path)), path[-1])
        if path[-1] == "embed_tokens":
            value = np.concatenate([value, np.asarray(variable[...])[len(value) :]])
        assert value.shape == variable.shape, path
        variable[...] = value
    assert not tensors, sorted(tensors)
    nnx.update(module, nnx.from_flat_state(list(flat.items())))


def randomise(module, seed=0, scale=0.1):
    """Gives every parameter of a PyTorch module a random value: norms and biases too."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()
