"""Ready configurations. Each is a function whose docstring states what to expect of it, and how that was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxrec.attention import (
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    PointwiseAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
    WassersteinAttentionConfig,
)
from jaxrec.config import PretrainingConfig, RunConfig, TrainingConfig, load_config
from jaxrec.data.batches import BatchConfig
from jaxrec.models import GRU4RecConfig, SRGNNConfig, STOSAConfig, TransformerConfig
from jaxrec.objectives import BinaryCrossEntropyConfig, BPRPositiveVersusNegativeConfig, CrossEntropyConfig
from jaxrec.optim import OptimizerConfig
from jaxrec.registry import Registry
from jaxrec.tasks import MaskedItemConfig, S3RecConfig

#: Functions that return a `RunConfig`, by name; `PRESETS.register` adds one.
PRESETS: Registry[Callable[[], RunConfig]] = Registry("preset")


def named_config(name: str) -> RunConfig:
    """The configuration of a preset, or that of the run in a directory, to start another from.

    Raises:
      UnknownNameError: there is neither.
    """
    saved = Path(name) / "config.json"
    if name in PRESETS or not saved.is_file():
        return PRESETS[name]()
    return load_config(saved).updated({"training.init_from": "", "training.init_items": "same"})


@PRESETS.register("sasrec")
def sasrec() -> RunConfig:
    """A modern SASRec: pre-norm, exact cross-entropy over the catalogue, packed batches, L = 50, D = 64.

    MovieTweetings, leave-one-out, 5 seeds: HR@10 .2438 ± .0027, NDCG@10 .1346 ± .0031; about a minute a seed on two CPU
    cores (``experiments/results/sasrec_movietweetings.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=32, max_length=50, position_origin="end"),
        encoder=TransformerConfig(
            width=64,
            layers=2,
            block="pre-norm",
            dropout=0.3,
            attention=SoftmaxAttentionConfig(heads=1, dropout=0.1),
        ),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=60, evaluate_every=2, patience=5),
    )


@PRESETS.register("sasrec-original")
def sasrec_original() -> RunConfig:
    """SASRec as published (Kang & McAuley 2018): original block, one sampled negative, positions from the end, D = 50.

    The negative is none of the user's items.

    No figure of ours yet: not measured.
    """
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=128, max_length=50, position_origin="end"),
        encoder=TransformerConfig(
            width=50,
            layers=2,
            block="original",
            activation="relu",
            dropout=0.5,
            scale_embeddings=True,
            init="xavier",
            norm_epsilon=1e-8,
            attention=SoftmaxAttentionConfig(heads=1, dropout=0.5),
        ),
        objective=BinaryCrossEntropyConfig(exclude_seen=True),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=200, evaluate_every=5, patience=10),
    )


@PRESETS.register("sasrec-s3rec")
def sasrec_s3rec() -> RunConfig:
    """SASRec in the S3-Rec code base, with the loss of Li et al. 2023: post-norm, GELU, two heads, dropout 0.5.

    The code stops after ten epochs without a gain. On small data validation falls for longer than that in the first epochs,
    before it rises again, so this preset waits for fifty.

    LastFM of S3-Rec, 5 seeds, packed rows, 60 epochs of patience: HR@10 .0626 ± .0026, NDCG@10 .0361 ± .0008
    (``experiments/results/miq-table-3_s3rec-lastfm.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=256, max_length=50, position_origin="end"),
        encoder=TransformerConfig(
            width=64,
            layers=2,
            block="post-norm",
            ffn_width=256,
            activation="gelu",
            dropout=0.5,
            embedding_norm=True,
            norm_epsilon=1e-12,
            attention=SoftmaxAttentionConfig(heads=2, dropout=0.5),
        ),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=200, evaluate_every=2, patience=25, metric="NDCG@20"),
    )


@PRESETS.register("sasrec-ml1m")
def sasrec_ml1m() -> RunConfig:
    """SASRec for long histories such as MovieLens 1M's: L = 200, one head, dropout 0.2.

    MovieLens 1M (6,040 users, 3,416 items), leave-one-out, one seed: HR@10 .3010, NDCG@10 .1737; 13.6 s an epoch on two
    CPU cores that do nothing else (``experiments/results/sasrec_ml-1m.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=128, max_length=200, position_origin="end"),
        encoder=TransformerConfig(
            width=64,
            layers=2,
            block="pre-norm",
            dropout=0.2,
            attention=SoftmaxAttentionConfig(heads=1, dropout=0.2),
        ),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=100, evaluate_every=2, patience=5),
    )


@PRESETS.register("stosa")
def stosa() -> RunConfig:
    """STOSA as its authors run it on Amazon Beauty: one layer of four heads, L = 100, BPR and pvn with one negative.

    The negative is none of the user's items. The encoder is that of the authors' code, whose means no attention touches
    (`jaxrec.models.stosa`); without the two ``legacy`` options it is the paper's.

    No figure of ours yet: not measured. The paper reports Recall@5 and NDCG@5 on 5-core Amazon data, leave-one-out.
    """
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=256, max_length=100, position_origin="end"),
        encoder=STOSAConfig(
            width=64,
            layers=1,
            dropout=0.3,
            attention=WassersteinAttentionConfig(heads=4),
            legacy_shared_norms=True,
            legacy_input_means=True,
        ),
        objective=BPRPositiveVersusNegativeConfig(pvn_weight=0.005, exclude_seen=True),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=500, evaluate_every=2, patience=25),
    )


@PRESETS.register("hstu")
def hstu() -> RunConfig:
    """HSTU's layers (pointwise attention, no feed-forward network) where `sasrec` has its own; else the same.

    On logs with times, ``--encoder.positions learned-hstu-time`` adds what the published code has beside the bias for
    distances: learned positions and a bias for seconds. MovieTweetings, 5 seeds, at twice the learning rate: HR@10
    .2250 ± .0049, NDCG@10 .1266 ± .0032 (``experiments/results/attention_movietweetings.md``); with ``--encoder.positions
    learned`` .2417 ± .0012 and .1355 ± .0014 (``experiments/results/attention-controls_movietweetings.md``).
    """
    attention = PointwiseAttentionConfig(heads=1, dropout=0.1)
    return sasrec().updated({"encoder.block": "attention-only", "encoder.attention": attention})


@PRESETS.register("ligr")
def ligr() -> RunConfig:
    """LiGR's gated residuals in the blocks of `sasrec`; else the same.

    ``--encoder.activation swiglu --encoder.ffn-width 256`` adds the feed-forward network of its public implementations.

    MovieTweetings, 5 seeds, at twice the learning rate: HR@10 .2417 ± .0053, NDCG@10 .1346 ± .0037
    (``experiments/results/attention_movietweetings.md``).
    """
    return sasrec().updated({"encoder.block": "gated"})


@PRESETS.register("miq")
def miq() -> RunConfig:
    """MIQ-Attn in the blocks of `sasrec`: the last 3 interactions form the queries; else the same.

    MovieTweetings, 5 seeds, at twice the learning rate: HR@10 .2389 ± .0026, NDCG@10 .1336 ± .0020; over users and
    seeds no difference from softmax attention was certain (``experiments/results/attention_movietweetings.md``).
    """
    return sasrec().updated(
        {"encoder.attention": MultiItemQueryAttentionConfig(heads=1, dropout=0.1, query_window=3)}
    )


@PRESETS.register("awrsr")
def awrsr() -> RunConfig:
    """AWRSR's "simple" attention on attention weights in the blocks of `sasrec`; else the same.

    MovieTweetings, 5 seeds, at twice the learning rate: HR@10 .2452 ± .0017, NDCG@10 .1358 ± .0018; no difference
    from softmax attention was seen, nor of uniform weights
    (``experiments/results/attention-controls_movietweetings.md``).
    """
    return sasrec().updated({"encoder.attention": RefinedAttentionConfig(heads=1, dropout=0.1)})


@PRESETS.register("kernel")
def kernel() -> RunConfig:
    """Positional kernel attention (a Toeplitz U, a full L per layer) in the blocks of `sasrec`; else the same.

    MovieTweetings, 5 seeds, at twice the learning rate: without additive positions HR@10 .2326 ± .0031, NDCG@10
    .1295 ± .0018 (``experiments/results/attention_movietweetings.md``); with ``--encoder.positions learned``, as `sasrec`
    has them, .2364 ± .0034 and .1318 ± .0016 (``experiments/results/attention-controls_movietweetings.md``).
    """
    return sasrec().updated({"encoder.attention": KernelAttentionConfig(heads=1, dropout=0.1)})


@PRESETS.register("bert4rec")
def bert4rec() -> RunConfig:
    """BERT4Rec (Sun et al. 2019): masked items read from both sides, exact cross-entropy over the catalogue.

    It learns from a fifth of the positions in a step, so it has many more epochs than `sasrec`, and more patience: published
    comparisons often stop it too early (Petrov & Macdonald, RecSys 2022). ``--encoder.prediction-transform
    --encoder.item-bias --batches.long-histories windows`` adds what the authors' code has and many others leave out.

    MovieTweetings, 5 seeds, 80 epochs, mask rate .5 and learning rate .003 chosen on validation: HR@10 .2335 ± .0027,
    NDCG@10 .1247 ± .0024; next items with the same encoder .2446 ± .0026 and .1363 ± .0017
    (``experiments/results/masked-items_movietweetings.md``). LastFM of S3-Rec, 5 seeds: HR@10 .0354 ± .0026, NDCG@10
    .0169 ± .0022 (``experiments/results/miq-table-3_s3rec-lastfm.md``); on every prefix, ``--batches.mode prefix
    --batches.batch-size 64 --training.epochs 12 --training.evaluate-every .2 --training.patience 15``, .0688 ± .0063 and
    .0379 ± .0041 (``experiments/results/masked-prefixes_s3rec-lastfm.md``, with beta2 .98).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=32, max_length=50, position_origin="end"),
        encoder=TransformerConfig(
            width=64,
            layers=2,
            block="post-norm",
            ffn_width=256,
            activation="gelu",
            dropout=0.2,
            embedding_norm=True,
            attention=SoftmaxAttentionConfig(heads=2, dropout=0.2),
        ),
        task=MaskedItemConfig(mask_rate=0.2),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=600, evaluate_every=5, patience=20),
    )


@PRESETS.register("gru4rec")
def gru4rec() -> RunConfig:
    """GRU4Rec in the shape of Li et al. 2023: one unit of width 128 without biases, cross-entropy at all positions.

    ``--objective bpr-max`` is the loss of Hidasi & Karatzoglou 2018.

    LastFM of S3-Rec, 5 seeds, 60 epochs of patience: HR@10 .0472 ± .0014, NDCG@10 .0250 ± .0015
    (``experiments/results/miq-table-3_s3rec-lastfm.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=64, max_length=50),
        encoder=GRU4RecConfig(width=64, hidden_width=128, dropout=0.5),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=200, evaluate_every=2, patience=25, metric="NDCG@20"),
    )


@PRESETS.register("srgnn")
def srgnn() -> RunConfig:
    """SR-GNN (Wu et al. 2019) with a session graph for each prefix and cross-entropy at all positions.

    ``--encoder.reading session-padding-faults --batches.mode padded`` computes what the public port in the code of Li et al.
    2023 does.

    LastFM of S3-Rec, 5 seeds, 60 epochs of patience: HR@10 .0435 ± .0044, NDCG@10 .0214 ± .0018
    (``experiments/results/miq-table-3_s3rec-lastfm.md``).
    """
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=64, max_length=50),
        encoder=SRGNNConfig(width=64, layers=1),
        objective=CrossEntropyConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.999),
        training=TrainingConfig(epochs=200, evaluate_every=2, patience=25, metric="NDCG@20"),
    )


@PRESETS.register("s3rec-pretrain")
def s3rec_pretrain() -> RunConfig:
    """Pretraining of S3-Rec (Zhou et al. 2020) as its authors' code does it; needs attributes of items.

    150 epochs, their choice for LastFM and Beauty, and the last parameters. The double sigmoid, the negative segments
    across histories and the padding attribute of the code are on; each is an option. An epoch draws at most 50 prefixes of
    each history (the code takes those that end in its last 50 items), and a batch is 64 packed rows of them (in the code 100
    prefixes). Fine-tune with
    ``jaxrec train --preset s3rec --init-from RUN``, which has our figures.
    """
    return sasrec_s3rec().updated(
        {
            "batches": BatchConfig(
                mode="prefix",
                batch_size=64,
                max_length=50,
                position_origin="end",
                prefixes_per_sequence=50,
            ),
            "task": S3RecConfig(
                double_sigmoid=True, negative_segments="across-histories", padding_attribute=True
            ),
            "training": TrainingConfig(epochs=150, evaluate_every=15, select="last", patience=0),
        }
    )


@PRESETS.register("s3rec")
def s3rec() -> RunConfig:
    """Fine-tuning of S3-Rec: `sasrec_s3rec` from a run of `s3rec_pretrain`, which ``--init-from RUN`` names.

    The loss is that of Li et al. 2023, cross-entropy; ``--objective bce --objective.exclude-seen`` is S3-Rec's own, whose
    negative is none of the user's items.

    LastFM of S3-Rec, 5 seeds, 20 epochs of pretraining, 60 epochs of patience: HR@10 .0752 ± .0036, NDCG@10
    .0411 ± .0021; with S3-Rec's own loss .0824 ± .0055 and .0422 ± .0018
    (``experiments/results/miq-table-3_s3rec-lastfm.md``).
    """
    return sasrec_s3rec()


@PRESETS.register("s3rec-two-stage")
def s3rec_two_stage() -> RunConfig:
    """S3-Rec in one command: `s3rec_pretrain` in the folder ``pretraining`` of the run, then `s3rec` from its parameters.

    Data, encoder, attention, seeds and lengths are given once and hold for both stages; ``--pretraining.options`` changes
    the first one alone. ``--resume`` continues whichever stage was interrupted. Needs attributes of items, which the
    bundled data has. `s3rec` has our figures.
    """
    return s3rec().updated({"pretraining": PretrainingConfig(preset="s3rec-pretrain")})


@PRESETS.register("smoke")
def smoke() -> RunConfig:
    """A few seconds on the bundled data: shows that everything runs, not what it can reach."""
    return RunConfig(
        batches=BatchConfig(mode="packed", batch_size=64, max_length=20),
        encoder=TransformerConfig(width=16, layers=1, dropout=0.1),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=TrainingConfig(epochs=2, evaluate_every=1, patience=0),
    )
