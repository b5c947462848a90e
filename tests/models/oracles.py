"""Every encoder once more: float64 NumPy, loops over one unpadded sequence, from the papers' equations."""

import itertools

import numpy as np
from scipy.special import erf

from tests.models.cases import D, user_of


def layer_norm(x, p, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def affine(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu-tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def attention(queries, x, p, heads, mask):
    """Softmax attention of one sequence [n, D], head by head and position by position."""
    n, width = x.shape
    size = width // heads
    q, k, v = split_qkv(queries, x, p)
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(n):
            keys = range(t + 1) if mask == "causal" else range(n)
            scores = np.array([q[t, part] @ k[j, part] for j in keys]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out[t, part] = sum(w * v[j, part] for j, w in zip(keys, weights, strict=True))
    return affine(out, p["output"]["dense"]) if "output" in p else out


def pointwise_attention(queries, x, p, heads, mask, max_length):
    """HSTU's attention: SiLU in place of the softmax, a norm and a gate."""
    silu = ACTIVATIONS["silu"]
    gate, q = silu(affine(queries, p["gate"])), silu(affine(queries, p["queries"]))
    k, v = silu(affine(x, p["keys"])), silu(affine(x, p["values"]))
    n, width = x.shape
    size = width // heads
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(n):
            for j in range(t + 1) if mask == "causal" else range(n):
                score = q[t, part] @ k[j, part] + p["distance_bias"][h, abs(t - j)]
                out[t, part] += silu(score) / max_length * v[j, part]
    centred = out - out.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return affine(normed * gate, p["output"])


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


def embed(params, items):
    """Vectors [n, D] of items; ids above the catalogue are special tokens."""
    table = params["table"] if "table" in params else composed(params)
    return np.stack([table[i] if i < len(table) else params["special"][i - len(table)] for i in items])


def composed(params):
    """Vectors [V+1, D] of items that are made of codes."""
    vectors = []
    for codes in params["codes"]:
        rows = [
            table[round(float(code)) - 1] for code, table in zip(codes, params["code_table"], strict=True)
        ]
        vectors.append(np.sum(rows, axis=0) if len(rows[0]) == D else np.concatenate(rows))
    return np.stack(vectors)


def places(encoder, n):
    """What positions count from."""
    return np.arange(n) if encoder.spec.position_origin == "start" else np.arange(n)[::-1]


def user_vector(config, p, user):
    """The vector of a user; of one whom training did not have (-1, or not marked) the learned or the mean one."""
    known = [u for u, mark in enumerate(p["known"]) if mark > 0]
    if user in known:
        return p["table"][user]
    return p["new"] if config.user_unknown else p["table"][known].sum(axis=0) / max(1, len(known))


def transformer(encoder, params, items, mask):
    """Hidden states [n, D] of one sequence of item ids."""
    config, n, width = encoder.config, len(items), encoder.config.width
    epsilon = config.norm_epsilon
    x = embed(params["items"], items)
    if config.scale_embeddings:
        x = x * np.sqrt(width)
    if encoder.positions == "learned":
        x = x + params["positions"]["table"][places(encoder, n)]
    elif encoder.positions == "sinusoidal":
        x = x + np.stack([sinusoid(t, width) for t in places(encoder, n)])
    n_padding, user = 0, None
    if config.user != "none":
        user = user_vector(config, params["users"], user_of(items))
    if config.user == "added":
        x = x + (affine(user, params["user_added"]) if "user_added" in params else user)
    if config.user == "prefix":  # literally: a position in front, which the causal mask shows to all others
        token = affine(user, params["user_prefix"]) if "user_prefix" in params else user
        x, n_padding = np.concatenate([token[None], x]), 1
    if config.padding_keys != "none":  # literally: zeros before the items, which every later query sees
        n_padding = encoder.max_length - n
        x = np.concatenate([np.zeros((n_padding, width)), x])
    if config.embedding_norm:
        x = layer_norm(x, params["embedding_norm"], epsilon)

    for layer in range(config.layers):
        p = params[f"layer_{layer}"]
        if config.padding_keys == "zero":
            x[:n_padding] = 0.0

        def feed_forward(z, p=p):
            maps = p["feed_forward"]
            inner = affine(z, maps["inner"])
            if config.activation == "swiglu":
                return affine(inner * sigmoid(inner) * affine(z, maps["factor"]), maps["outer"])
            return affine(ACTIVATIONS[config.activation](inner), maps["outer"])

        def attend(queries, x, p=p):
            heads = config.attention.heads
            if "distance_bias" in p["attention"]:
                return pointwise_attention(queries, x, p["attention"], heads, mask, encoder.max_length)
            return attention(queries, x, p["attention"], heads, mask)

        if config.block == "original":
            q = layer_norm(x, p["attention_norm"], epsilon)
            z = layer_norm(q + attend(q, x), p["feed_forward_norm"], epsilon)
            x = z + feed_forward(z)
        elif config.block == "post-norm":
            x = layer_norm(x + attend(x, x), p["attention_norm"], epsilon)
            x = layer_norm(x + feed_forward(x), p["feed_forward_norm"], epsilon)
        elif config.block == "gated":
            change = attend(*[layer_norm(x, p["attention_norm"], epsilon)] * 2)
            x = x + change * sigmoid(affine(x, p["attention_gate"]))
            change = feed_forward(layer_norm(x, p["feed_forward_norm"], epsilon))
            x = x + change * sigmoid(affine(x, p["feed_forward_gate"]))
        else:
            z = layer_norm(x, p["attention_norm"], epsilon)
            x = x + attend(z, z)
            if config.block == "pre-norm":
                x = x + feed_forward(layer_norm(x, p["feed_forward_norm"], epsilon))
    x = x[n_padding:]
    normalised = {"on": True, "off": False, "auto": config.block != "post-norm"}[config.final_norm]
    x = layer_norm(x, params["final_norm"], epsilon) if normalised else x
    if config.user == "film":
        changes = user @ params["user_film"]["kernel"]
        x = x * (1 + changes[:width]) + changes[width:]
    if config.prediction_transform:
        x = layer_norm(
            ACTIVATIONS["gelu"](affine(x, params["prediction"])), params["prediction_norm"], epsilon
        )
    return scored(config, x)


def scored(config, x):
    """The states that products with the items score: at length 1 for cosines."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True) if config.similarity == "cosine" else x


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0.0)) - 1.0)


def stosa(encoder, params, items, mask):
    """Means and square roots of covariances [n, 2 d] of one sequence."""
    config, n, width = encoder.config, len(items), encoder.config.width
    streams = []
    for name in ("mean", "covariance"):
        x = embed(params[f"{name}_items"], items)
        if encoder.positions == "learned":
            x = x + params[f"{name}_positions"]["table"][places(encoder, n)]
        own_norm = "norm" if config.legacy_shared_norms else f"{name}_norm"
        streams.append(elu(layer_norm(x, params[own_norm], config.norm_epsilon)))
    mean, covariance = streams[0], streams[1] + 1.0
    for layer in range(config.layers):
        p = params[f"layer_{layer}"]
        q, k, v = split_qkv(mean, mean, {"projections": p["attention"]["mean"]})
        deviations = split_qkv(covariance, covariance, {"projections": p["attention"]["covariance"]})
        q2, k2, v2 = (elu(z) + 1.0 for z in deviations)
        means, covariances = np.zeros((n, width)), np.zeros((n, width))
        size = width // config.attention.heads
        for h in range(config.attention.heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(n):
                keys = range(t + 1) if mask == "causal" else range(n)
                distances = np.array(
                    [
                        ((q[t, part] - k[j, part]) ** 2).sum()
                        + ((np.sqrt(q2[t, part]) - np.sqrt(k2[j, part])) ** 2).sum()
                        for j in keys
                    ]
                )
                weights = np.exp(-distances / np.sqrt(size))
                weights /= weights.sum()
                means[t, part] = sum(w * v[j, part] for j, w in zip(keys, weights, strict=True))
                covariances[t, part] = sum(w**2 * v2[j, part] for j, w in zip(keys, weights, strict=True))
        out = []
        for name, x, change in (("mean", mean, means), ("covariance", covariance, covariances)):
            x = x + affine(change, p["attention"][f"{name}_output"]["dense"])
            own_norm = "attention_norm" if config.legacy_shared_norms else f"{name}_attention_norm"
            x = layer_norm(x, p[own_norm], config.norm_epsilon)
            inner = elu(affine(x, p[f"{name}_inner"]))
            x = layer_norm(
                x + affine(inner, p[f"{name}_outer"]), p[f"{name}_feed_forward_norm"], config.norm_epsilon
            )
            out.append(x)
        mean = mean if config.legacy_input_means else out[0]
        covariance = elu(out[1]) + 1.0
    return np.concatenate([mean, np.sqrt(covariance)], axis=1)


def gru4rec(encoder, params, items, mask):
    """Hidden states [n, D], one item after the other."""
    config = encoder.config
    inputs = embed(params["items"], items)
    for layer in range(config.layers):
        p = params[f"layer_{layer}"]
        width = config.state_width
        state, states = np.zeros(width), []
        for x in inputs:
            kernel = p["recurrent_kernel"]
            reset = sigmoid(affine(x, p["reset_input"]) + state @ kernel[:, :width])
            update = sigmoid(affine(x, p["update_input"]) + state @ kernel[:, width : 2 * width])
            inner = state @ kernel[:, 2 * width :] + p.get("recurrent_bias", 0.0)
            candidate = np.tanh(affine(x, p["candidate_input"]) + reset * inner)
            state = (1 - update) * candidate + update * state
            states.append(state)
        inputs = np.stack(states)
    return scored(config, affine(inputs, params["projection"]) if "projection" in params else inputs)


def session_graph(params, items, layers, connected=True):
    """States of the nodes of one session after the propagation, by item; item 0 stands for padding."""
    nodes = {
        item: embed(params["items"], [item])[0] if item else np.zeros_like(params["query"])
        for item in {0, *items}
    }
    edges = set(itertools.pairwise(items)) if connected else set()

    def mean(states, neighbours, name):
        messages = [affine(states[u], params[name]) for u in neighbours]
        total = sum(messages) / len(messages) if messages else 0.0
        return total + params[f"{name}_bias"]

    for _ in range(layers):
        old, nodes = nodes, {}
        for item, state in old.items():
            incoming = mean(old, sorted(u for u, v in edges if v == item), "incoming")
            outgoing = mean(old, sorted(v for u, v in edges if u == item), "outgoing")
            gates = affine(np.concatenate([incoming, outgoing]), params["gates_input"])
            own = affine(state, params["gates_state"])
            d = len(state)
            reset, update = sigmoid(gates[: 2 * d] + own[: 2 * d]).reshape(2, d)
            new = np.tanh(gates[2 * d :] + reset * own[2 * d :])
            nodes[item] = (1 - update) * state + update * new
    return nodes


def srgnn(encoder, params, items, mask):
    """Hidden states [n, D]: a session graph for each prefix, or the public port's reading of one graph."""
    config, items = encoder.config, [int(item) for item in items]

    def weight(last, state):
        return params["query"] @ sigmoid(affine(last, params["last"]) + affine(state, params["each"]))

    hidden = []
    if config.reading == "prefix":
        for t in range(len(items)):
            nodes = session_graph(params, items[: t + 1], config.layers)
            last = nodes[items[t]]
            total = sum(weight(last, nodes[item]) * nodes[item] for item in items[: t + 1])
            hidden.append(affine(np.concatenate([total, last]), params["output"]))
        return scored(config, np.stack(hidden))
    row, last_index = items, len(items) - 1
    connected = True
    if config.reading == "session-padding-faults":
        row = [0] * (encoder.max_length - len(items)) + items
        connected = len(row) - len(items) < 2
    nodes = session_graph(params, items, config.layers, connected)
    last = nodes[row[last_index]]
    for item in items:
        hidden.append(
            affine(np.concatenate([weight(last, nodes[item]) * nodes[item], last]), params["output"])
        )
    return scored(config, np.stack(hidden))


ORACLES = {"transformer": transformer, "stosa": stosa, "gru4rec": gru4rec, "srgnn": srgnn}


def float64(tree):
    """A tree of parameters as float64 NumPy arrays."""
    if isinstance(tree, dict):
        return {name: float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
