"""Ready configurations. Each is a function whose docstring states what to expect of it, and how that was measured."""

from __future__ import annotations

import dataclasses

from jaxrec.attention import PointwiseAttentionConfig, SoftmaxAttentionConfig, WassersteinAttentionConfig
from jaxrec.config import RunConfig, TrainingConfig
from jaxrec.data.batches import BatchConfig
from jaxrec.models import SASRecConfig, STOSAConfig
from jaxrec.objectives import BinaryCrossEntropyConfig, BPRPositiveVersusNegativeConfig, CrossEntropyConfig
from jaxrec.optim import OptimizerConfig
from jaxrec.registry import Registry


def sasrec() -> RunConfig:
    """A modern SASRec: pre-norm, exact cross-entropy over the catalogue, packed batches, L = 50, D = 64.

    MovieTweetings, leave-one-out, 5 seeds: HR@10 .2438 ± .0027, NDCG@10 .1346 ± .0031; about a minute a seed on two CPU
    cores (``experiments/results/sasrec_movietweetings.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=32, max_length=50, position_origin="end"),
        encoder=SASRecConfig(width=64, layers=2, block="pre-norm", dropout=0.3),
        attention=SoftmaxAttentionConfig(heads=1, dropout=0.1),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=60, evaluate_every=2, patience=5),
    )


def sasrec_original() -> RunConfig:
    """SASRec as published (Kang & McAuley 2018): original block, one sampled negative, positions from the end, D = 50.

    No figure of ours yet: not measured.
    """
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=128, max_length=50, position_origin="end"),
        encoder=SASRecConfig(
            width=50,
            layers=2,
            block="original",
            activation="relu",
            dropout=0.5,
            scale_embeddings=True,
            init="xavier",
            norm_epsilon=1e-8,
        ),
        attention=SoftmaxAttentionConfig(heads=1, dropout=0.5),
        objective=BinaryCrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=200, evaluate_every=5, patience=10),
    )


def sasrec_s3rec() -> RunConfig:
    """SASRec in the S3-Rec code base, with the loss of Li et al. 2023: post-norm, GELU, two heads, dropout 0.5.

    No figure of ours yet: not measured.
    """
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=256, max_length=50, position_origin="end"),
        encoder=SASRecConfig(
            width=64,
            layers=2,
            block="post-norm",
            ffn_width=256,
            activation="gelu",
            dropout=0.5,
            embedding_norm=True,
            norm_epsilon=1e-12,
        ),
        attention=SoftmaxAttentionConfig(heads=2, dropout=0.5),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=200, metric="NDCG@20"),
    )


def sasrec_ml1m() -> RunConfig:
    """SASRec for long histories such as MovieLens 1M's: L = 200, one head, dropout 0.2.

    MovieLens 1M (6,040 users, 3,416 items), leave-one-out, one seed: HR@10 .3010, NDCG@10 .1737; 13.6 s an epoch on two
    CPU cores that do nothing else (``experiments/results/sasrec_ml-1m.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=128, max_length=200, position_origin="end"),
        encoder=SASRecConfig(width=64, layers=2, block="pre-norm", dropout=0.2),
        attention=SoftmaxAttentionConfig(heads=1, dropout=0.2),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=100, evaluate_every=2, patience=5),
    )


def stosa() -> RunConfig:
    """STOSA as its authors run it on Amazon Beauty: one layer of four heads, L = 100, BPR and pvn with one negative.

    No figure of ours yet: not measured. The paper reports Recall@5 and NDCG@5 on 5-core Amazon data, leave-one-out.
    """
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=256, max_length=100, position_origin="end"),
        encoder=STOSAConfig(width=64, layers=1, dropout=0.3),
        attention=WassersteinAttentionConfig(heads=4),
        objective=BPRPositiveVersusNegativeConfig(pvn_weight=0.005),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=500, evaluate_every=2, patience=25),
    )


def hstu() -> RunConfig:
    """HSTU's layers (pointwise attention, no feed-forward network) where `sasrec` has its own; else the same.

    On logs with times, ``--encoder.positions time-interval`` adds the paper's bias for seconds. MovieTweetings, 5 seeds, at
    twice the learning rate: HR@10 .2250 ± .0049, NDCG@10 .1266 ± .0032
    (``experiments/results/attention_movietweetings.md``).
    """
    return dataclasses.replace(
        sasrec(),
        encoder=SASRecConfig(width=64, layers=2, block="attention-only", dropout=0.3),
        attention=PointwiseAttentionConfig(heads=1, dropout=0.1),
    )


def ligr() -> RunConfig:
    """LiGR's gated residuals in the blocks of `sasrec`; else the same.

    MovieTweetings, 5 seeds, at twice the learning rate: HR@10 .2417 ± .0053, NDCG@10 .1346 ± .0037
    (``experiments/results/attention_movietweetings.md``).
    """
    return dataclasses.replace(sasrec(), encoder=SASRecConfig(width=64, layers=2, block="gated", dropout=0.3))


def smoke() -> RunConfig:
    """A few seconds on the bundled data: shows that everything runs, not what it can reach."""
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=64, max_length=20),
        encoder=SASRecConfig(width=16, layers=1, dropout=0.1),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=TrainingConfig(epochs=2, evaluate_every=1, patience=0),
    )


PRESETS = Registry(
    "preset",
    {
        "sasrec": sasrec,
        "sasrec-original": sasrec_original,
        "sasrec-s3rec": sasrec_s3rec,
        "sasrec-ml1m": sasrec_ml1m,
        "stosa": stosa,
        "hstu": hstu,
        "ligr": ligr,
        "smoke": smoke,
    },
)
