"""Every mechanism once more: NumPy, float64, loops over one unpadded sequence. Written from the equations."""

import math

import numpy as np


def softmax(values):
    values = np.asarray(values, np.float64)
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def elu_plus_one(x):
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))


def affine(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def projections(x, queries, layer):
    width = x.shape[1]
    out = []
    for part, source in enumerate((x if queries is None else queries, x, x)):
        columns = slice(part * width, (part + 1) * width)
        out.append(source @ layer["kernel"][:, columns] + layer["bias"][columns])
    return out


def output(x, params, name="output"):
    return affine(x, params[name]["dense"]) if name in params else x


def turned(vector, place):
    """Rotary rotation of one head's vector."""
    half = len(vector) // 2
    out = vector.copy()
    for i in range(half):
        angle = place * 10_000.0 ** (-i / half)
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def t5_bucket(offset, bidirectional):
    """T5's bucket of query index less key index."""
    count = 16 if bidirectional else 32
    first = count if offset < 0 else 0
    distance, exact = abs(offset), count // 2
    if distance < exact:
        return first + distance
    return first + min(
        count - 1, exact + int(math.log(distance / exact) / math.log(128 / exact) * (count - exact))
    )


def interval_bucket(seconds):
    if seconds < 2:
        return seconds
    exponent = math.floor(math.log2(seconds))
    return 2 * exponent + (1 if seconds >= 1.5 * 2**exponent else 0)


def keys_of(variant, query, n):
    """Indices of the keys that a query sees."""
    return range(n if variant.mask == "bidirectional" else query + 1)


class Scheme:
    """Positions inside attention, of one head."""

    def __init__(self, variant, params, head, timestamps):
        self.name, self.head, self.times = variant.positions, head, timestamps
        self.heads = variant.config.heads
        self.bidirectional = variant.mask == "bidirectional"
        self.table = params.get("positions", {}).get("table")

    def turn(self, vector, place):
        return turned(vector, place) if self.name == "rotary" else vector

    def bias(self, i, j):
        if self.name == "relative-bias":
            return self.table[self.head, t5_bucket(i - j, self.bidirectional)]
        if self.name == "alibi":
            return -(2.0 ** (-8.0 * (self.head + 1) / self.heads)) * abs(i - j)
        if self.name == "time-interval":
            return self.table[self.head, interval_bucket(abs(int(self.times[i] - self.times[j])))]
        if self.name in ("hstu-time", "learned-hstu-time"):
            following = self.times[min(i + 1, len(self.times) - 1)]
            return self.table[0, int(math.log(max(1, abs(int(following - self.times[j])))) / 0.301)]
        return 0.0


def heads_of(variant, params, timestamps, width):
    size = width // variant.config.heads
    for head in range(variant.config.heads):
        yield head, slice(head * size, (head + 1) * size), Scheme(variant, params, head, timestamps)


def dot_scores(variant, q, k, scheme):
    """Scores with the scheme's bias; NaN where the mask forbids a key."""
    n, size = q.shape
    scores = np.full((n, n), np.nan)
    for i in range(n):
        for j in keys_of(variant, i, n):
            product = float(scheme.turn(q[i], i) @ scheme.turn(k[j], j))
            scores[i, j] = product / math.sqrt(size) + scheme.bias(i, j)
    return scores


def masked_softmax(scores):
    """Softmax of each row over the entries that are numbers; 0 elsewhere."""
    out = np.zeros_like(scores)
    for i, row in enumerate(scores):
        seen = ~np.isnan(row)
        out[i, seen] = softmax(row[seen])
    return out


def softmax_attention(variant, params, x, queries, places, timestamps, shared):
    q, k, v = projections(x, queries, params["projections"])
    out = np.zeros_like(x)
    for _, part, scheme in heads_of(variant, params, timestamps, x.shape[1]):
        out[:, part] = masked_softmax(dot_scores(variant, q[:, part], k[:, part], scheme)) @ v[:, part]
    return output(out, params)


def kernel_entry(structure, kernel, places, later, earlier):
    if structure == "identity":
        return float(later == earlier)
    if structure == "toeplitz":
        return kernel[later - earlier]
    if structure == "banded":
        return kernel[places[later], later - earlier] if later - earlier < kernel.shape[1] else 0.0
    triangle = []
    for row in range(200):
        triangle.extend((row, column) for column in range(row + 1))
        if len(triangle) >= len(kernel):
            break
    high, low = max(places[later], places[earlier]), min(places[later], places[earlier])
    return kernel[triangle.index((high, low))]


def kernel_attention(variant, params, x, queries, places, timestamps, shared):
    config = variant.config
    q, k, v = projections(x, queries, params["projections"])
    kernels = {**params.get("kernel", {}), **(shared or {})}
    n = len(x)
    out = np.zeros_like(x)
    for head, part, scheme in heads_of(variant, params, timestamps, x.shape[1]):
        row = head if config.per_head else 0
        upper, lower = np.zeros((n, n)), np.zeros((n, n))
        for later in range(n):
            for earlier in range(later + 1):
                for name, matrix in (("upper", upper), ("lower", lower)):
                    kernel = kernels[name][row] if name in kernels else None
                    entry = kernel_entry(getattr(config, name), kernel, places, later, earlier)
                    matrix[(earlier, later) if name == "upper" else (later, earlier)] = entry
        # The definition, not the shortcut: scores times U over all pairs, then the mask.
        turned_q = np.stack([scheme.turn(q[i, part], i) for i in range(n)])
        turned_k = np.stack([scheme.turn(k[i, part], i) for i in range(n)])
        everything = (turned_q @ turned_k.T / math.sqrt(part.stop - part.start)) @ upper
        scores = np.full((n, n), np.nan)
        for i in range(n):
            for j in keys_of(variant, i, n):
                scores[i, j] = everything[i, j] + scheme.bias(i, j)
        out[:, part] = masked_softmax(scores) @ (lower @ v[:, part])
    return output(out, params)


def miq_attention(variant, params, x, queries, places, timestamps, shared):
    config = variant.config
    m, (n, width) = config.query_window + config.printed_window, x.shape
    dummies = shared if config.share_dummies else params["dummies"]["vectors"]
    extended = np.concatenate([dummies, x if queries is None else queries])
    window = params["query_window"]["slots"]
    kernel, bias = params["keys_values"]["kernel"], params["keys_values"]["bias"]
    k, v = np.split(x @ kernel + bias, 2, axis=1)
    dummy_k, dummy_v = np.split(dummies @ kernel + bias, 2, axis=1)
    answers = np.zeros((n, m, width))
    for t in range(n):
        for j in range(m):
            q = extended[t + j] @ window["kernel"][j] + window["bias"][j]
            for _, part, scheme in heads_of(variant, params, timestamps, width):
                root = math.sqrt(part.stop - part.start)
                scores = [
                    float(scheme.turn(q[part], t) @ scheme.turn(k[s, part], s)) / root + scheme.bias(t, s)
                    for s in keys_of(variant, t, n)
                ]
                values = [v[s, part] for s in keys_of(variant, t, n)]
                if config.dummies_as_keys:
                    scores += [float(q[part] @ key[part]) / root for key in dummy_k]
                    values += list(dummy_v[:, part])
                answers[t, j, part] = softmax(scores) @ np.array(values)
    out = np.zeros_like(x)
    for t in range(n):
        o = answers[t]
        if config.query_level == "none":
            out[t] = o.mean(axis=0)
            continue
        logits = (
            (o @ params["query_level_keys_kernel"])
            @ (o @ params["query_level_queries_kernel"]).T
            / math.sqrt(width)
        )
        each = np.stack([softmax(row) for row in logits])
        alpha = {
            "mean": each.mean(axis=0),
            "sum": each.sum(axis=0),
            "last": each[-1],
            "pooled": softmax(logits.mean(axis=0)),
        }[config.query_level]
        out[t] = alpha @ (o @ params["query_level_values_kernel"])
    return output(out, params)


def unit(x):
    """Root mean square of 1 along the last axis."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


def refined(config, params, scores, places):
    """AWRSR's weights from scores (NaN where the mask forbids), one profile at a time."""
    refinement = params["refinement"]
    names = ["query", "key"]
    if config.variant == "value-weighted" and config.value_map:
        names += ["value", "value_out"] if config.rank else ["value"]
    maps = dict(zip(names, refinement["maps"], strict=True))
    old = masked_softmax(scores)
    for _ in range(config.depth):
        new = refined_once(config, refinement, maps, scores, old, places)
        if config.residual == "gate" or config.variant == "additive-gated":
            gate = sigmoid(refinement["gate"])
            new = (1 - gate) * old + gate * new
        scores = np.where(np.isnan(scores), np.nan, np.log(np.maximum(new, 1e-9)))
        old = new
    return old


def refined_once(config, refinement, maps, scores, old, places):
    n = len(scores)
    forbidden = np.isnan(scores)
    if config.source == "prob":
        profiles = old
    elif config.source == "raw":
        profiles = np.where(forbidden, 0.0, scores)
    else:
        profiles = np.zeros((n, n))
        for row in range(n):
            seen = ~forbidden[row]
            logarithms = np.log(softmax(scores[row, seen]))
            profiles[row, seen] = logarithms - logarithms.mean()

    def through(name):
        return np.stack([sum(row[a] * maps[name][places[a]] for a in range(n)) for row in profiles])

    query, key = through("query"), through("key")
    size = query.shape[1]
    if config.variant == "stochastic":
        query = key = np.concatenate([query, np.sqrt(elu_plus_one(key)) - 1.0], axis=1)
    if config.scale == "unit":
        query, key = unit(query), unit(key)
    correlation, near = np.full((n, n), np.nan), np.eye(n, dtype=bool)
    for i in range(n):
        for j in np.flatnonzero(~forbidden[i]):
            if config.scale == "unit" and config.variant != "additive-bahdanau":
                lengths = np.linalg.norm(query[i]) * np.linalg.norm(key[j])
                near[i, j] |= (query[i] @ key[j] / lengths if lengths > 0 else 0.0) >= config.threshold
            if config.variant == "additive-bahdanau":
                correlation[i, j] = refinement["vector"] @ np.tanh(query[i] + key[j])
            elif config.variant == "stochastic":
                distance = ((query[i] - key[j]) ** 2).sum()
                factor = refinement["temperature"] / (4 * size) if config.scale == "unit" else size**-0.5
                correlation[i, j] = -distance * factor
            elif config.scale == "unit":
                correlation[i, j] = refinement["temperature"] * (query[i] @ key[j]) / size
            else:
                correlation[i, j] = query[i] @ key[j] / math.sqrt(size)
    near |= config.threshold == -1.0
    if config.variant == "additive":
        return masked_softmax(scores + np.where(near, correlation, 0.0 * correlation))
    new = masked_softmax(np.where(near, correlation, np.nan))
    if config.variant != "value-weighted":
        return new
    if not config.value_map:
        hops = new @ profiles
        return hops if config.source == "prob" else masked_softmax(np.where(forbidden, np.nan, hops))
    full = maps["value"] @ maps["value_out"].T if config.rank else maps["value"]
    spread = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            spread[i, j] = sum(profiles[i, a] * full[places[a], places[j]] for a in range(n))
    return masked_softmax(np.where(forbidden, np.nan, new @ spread))


def refined_attention(variant, params, x, queries, places, timestamps, shared):
    q, k, v = projections(x, queries, params["projections"])
    out = np.zeros_like(x)
    for _, part, scheme in heads_of(variant, params, timestamps, x.shape[1]):
        scores = dot_scores(variant, q[:, part], k[:, part], scheme)
        out[:, part] = refined(variant.config, params, scores, places) @ v[:, part]
    return output(out, params)


def wasserstein_attention(variant, params, x, queries, places, timestamps, shared):
    config, n, half = variant.config, len(x), x.shape[1] // 2
    ask = (None, None) if queries is None else (queries[:, :half], queries[:, half:])
    mean_q, mean_k, mean_v = projections(x[:, :half], ask[0], params["mean"])
    cov_q, cov_k, cov_v = (elu_plus_one(p) for p in projections(x[:, half:], ask[1], params["covariance"]))
    means, covariances = np.zeros((n, half)), np.zeros((n, half))
    for _, part, scheme in heads_of(variant, params, timestamps, half):
        scores = np.full((n, n), np.nan)
        for i in range(n):
            for j in keys_of(variant, i, n):
                squared = ((mean_q[i, part] - mean_k[j, part]) ** 2).sum()
                squared += ((np.sqrt(cov_q[i, part]) - np.sqrt(cov_k[j, part])) ** 2).sum()
                scores[i, j] = -squared / math.sqrt(part.stop - part.start) + scheme.bias(i, j)
        weights = (
            masked_softmax(scores) if config.variant == "none" else refined(config, params, scores, places)
        )
        means[:, part] = weights @ mean_v[:, part]
        covariances[:, part] = weights**2 @ cov_v[:, part]
    return np.concatenate(
        [output(means, params, "mean_output"), output(covariances, params, "covariance_output")], axis=1
    )


def pointwise_attention(variant, params, x, queries, places, timestamps, shared):
    ask = x if queries is None else queries
    gate, q = silu(affine(ask, params["gate"])), silu(affine(ask, params["queries"]))
    k, v = silu(affine(x, params["keys"])), silu(affine(x, params["values"]))
    n = len(x)
    out = np.zeros_like(x)
    for head, part, scheme in heads_of(variant, params, timestamps, x.shape[1]):
        for i in range(n):
            for j in keys_of(variant, i, n):
                score = float(scheme.turn(q[i, part], i) @ scheme.turn(k[j, part], j)) + scheme.bias(i, j)
                if variant.config.distance_bias:
                    score += params["distance_bias"][head, abs(i - j)]
                out[i, part] += silu(score) / variant.max_length * v[j, part]
    centred = out - out.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    return affine(normed * gate, params["output"])


def uniform_attention(variant, params, x, queries, places, timestamps, shared):
    values = affine(x, params["values"])
    means = [values[list(keys_of(variant, i, len(x)))].mean(axis=0) for i in range(len(x))]
    return output(np.stack(means), params)


ORACLES = {
    "softmax": softmax_attention,
    "miq": miq_attention,
    "awrsr": refined_attention,
    "kernel": kernel_attention,
    "hstu": pointwise_attention,
    "wasserstein": wasserstein_attention,
    "uniform": uniform_attention,
}
