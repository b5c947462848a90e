"""The objectives of S3-Rec once more: float64 NumPy, loops over positions, from the equations."""

import numpy as np

from tests.models.oracles import sigmoid, transformer


def softplus(x):
    return np.log1p(np.exp(-abs(x))) + max(x, 0.0)


def affine(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def states(encoder, params, items, segments):
    """Hidden states [B, L, D] of a batch under a bidirectional mask, sequence by sequence."""
    out = np.zeros((*items.shape, params["items"]["table"].shape[1]))
    for r in range(len(items)):
        for segment in range(1, segments[r].max() + 1):
            columns = np.flatnonzero(segments[r] == segment)
            out[r, columns] = transformer(encoder, params, items[r, columns], "bidirectional")
    return out


def terms(task, params, views, attributes):
    """AAP, MIP, MAP and SP of the draws in ``views``, by name."""
    config, encoder, batch, heads = task.config, task.encoder, views.batch, params["task"]
    items, segments, masked = batch.items, batch.segments, views.masked
    token = encoder.spec.n_items + 1
    table = params["items"]["table"]
    hidden = states(encoder, params, np.where(masked, token, items), segments)
    sums = dict.fromkeys(("aap", "mip", "map", "sp"), 0.0)
    vectors = heads["attributes"]["table"]
    shift = 0 if config.padding_attribute else 1
    for place in np.argwhere(segments > 0):
        place = tuple(place)
        item = items[place]
        own = [a - shift for a in attributes[item] if a > 0]
        name = "map" if masked[place] else "aap"
        if own:
            x = table[item] if config.form == "paper" and name == "aap" else hidden[place]
            logits = [affine(x, heads[name]) @ vector for vector in vectors]
            if config.form == "paper":
                others = sum(np.exp(sigmoid(z)) for a, z in enumerate(logits) if a not in own)
                sums[name] += sum(np.log(others) - sigmoid(logits[a]) for a in own)
            else:
                sums[name] += sum(softplus(-z) if a in own else softplus(z) for a, z in enumerate(logits))
        if masked[place]:
            x = affine(hidden[place], heads["mip"])
            positive, negative = x @ table[item], x @ table[views.negatives[place]]
            if config.form == "paper":
                others = [x @ table[i] for i in range(1, token) if i != item]
                sums["mip"] += np.log(sum(np.exp(sigmoid(z)) for z in others)) - sigmoid(positive)
            else:
                sums["mip"] += compare(config, positive, negative)
    whole = [states(encoder, params, views.segment_views[:, view], segments) for view in range(3)]
    for place in np.argwhere(views.comparisons):
        context, positive, negative = (view[tuple(place)] for view in whole)
        x = affine(context, heads["sp"])
        sums["sp"] += compare(config, x @ positive, x @ negative)
    return sums


def compare(config, positive, negative):
    if config.form == "paper":
        return sigmoid(negative) - sigmoid(positive)
    if config.double_sigmoid:
        return -np.log(sigmoid(sigmoid(positive) - sigmoid(negative)))
    return -np.log(sigmoid(positive - negative))
