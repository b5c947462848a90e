"""SASRec one position at a time, in float64 NumPy, from the papers' equations."""

import numpy as np
from scipy.special import erf


def layer_norm(x, p, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def affine(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu-tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def attention(queries, x, p, heads):
    """Causal softmax attention of one sequence [n, D], head by head and position by position."""
    n, width = x.shape
    size = width // heads
    q, k, v = split_qkv(queries, x, p)
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(n):
            scores = np.array([q[t, part] @ k[j, part] for j in range(t + 1)]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out[t, part] = sum(w * v[j, part] for j, w in enumerate(weights))
    return affine(out, p["output"]["dense"]) if "output" in p else out


def split_qkv(queries, x, p):
    """The three maps lie side by side in one kernel [D, 3 D]."""
    width = x.shape[-1]
    kernel, bias = (p["projections"][name] for name in ("kernel", "bias"))
    parts = [slice(i * width, (i + 1) * width) for i in range(3)]
    return tuple(z @ kernel[:, part] + bias[part] for z, part in zip((queries, x, x), parts, strict=True))


def sinusoid(position, width):
    half = (width + 1) // 2
    frequency = np.exp(-np.log(1e4) * np.arange(half) / max(half - 1, 1))
    return np.concatenate([np.sin(position * frequency), np.cos(position * frequency)])[:width]


def sasrec(encoder, params, items):
    """Hidden states [n, D] of one sequence of item ids."""
    params = _float64(params)
    config, n, width = encoder.config, len(items), encoder.config.width
    epsilon, activation = config.norm_epsilon, ACTIVATIONS[config.activation]
    x = np.stack([params["items"]["table"][i] for i in items])
    if config.scale_embeddings:
        x = x * np.sqrt(width)
    if encoder.positions == "learned":
        x = x + params["positions"]["table"][np.arange(n)]
    elif encoder.positions == "sinusoidal":
        x = x + np.stack([sinusoid(t, width) for t in range(n)])
    if config.embedding_norm:
        x = layer_norm(x, params["embedding_norm"], epsilon)

    for layer in range(config.layers):
        p = params[f"layer_{layer}"]

        def feed_forward(z, p=p):
            return affine(activation(affine(z, p["feed_forward"]["inner"])), p["feed_forward"]["outer"])

        heads = encoder.attention.heads
        if config.block == "original":
            q = layer_norm(x, p["attention_norm"], epsilon)
            z = layer_norm(q + attention(q, x, p["attention"], heads), p["feed_forward_norm"], epsilon)
            x = z + feed_forward(z)
        elif config.block == "post-norm":
            x = layer_norm(x + attention(x, x, p["attention"], heads), p["attention_norm"], epsilon)
            x = layer_norm(x + feed_forward(x), p["feed_forward_norm"], epsilon)
        elif config.block == "gated":
            change = attention(*[layer_norm(x, p["attention_norm"], epsilon)] * 2, p["attention"], heads)
            x = x + change / (1 + np.exp(-affine(x, p["attention_gate"])))
            change = feed_forward(layer_norm(x, p["feed_forward_norm"], epsilon))
            x = x + change / (1 + np.exp(-affine(x, p["feed_forward_gate"])))
        else:
            z = layer_norm(x, p["attention_norm"], epsilon)
            x = x + attention(z, z, p["attention"], heads)
            if config.block == "pre-norm":
                x = x + feed_forward(layer_norm(x, p["feed_forward_norm"], epsilon))
    return x if config.block == "post-norm" else layer_norm(x, params["final_norm"], epsilon)


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
