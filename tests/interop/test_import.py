"""Published checkpoints as runs: hidden states of the original code, refusals, and what follows an import."""

from __future__ import annotations

import dataclasses
import io
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Recommender, fit
from jaxrec.cli.main import main
from jaxrec.config import save_config
from jaxrec.data import SequenceDataset
from jaxrec.data.batches import Batch
from jaxrec.data.dataset import open_dataset
from jaxrec.errors import CheckpointError, ConfigError, DataError, RunExistsError
from jaxrec.interop import FORMATS, ImportOptions, import_checkpoint, read_model, read_torch_file
from jaxrec.interop.formats import Reader
from jaxrec.interop.importing import item_rows
from jaxrec.interop.unpickling import DataUnpickler, Storage
from jaxrec.models import DataSpec
from jaxrec.presets import named_config
from jaxrec.runs import Run
from tests.helpers import replace, small_config

FILES = Path(__file__).parent / "checkpoints"
ITEMS = 9
#: file -> (format, options that the file does not hold)
CASES = {
    "pmixer-2020": ("sasrec-pytorch", ImportOptions(heads=2)),
    "pmixer-2024": ("sasrec-pytorch", ImportOptions(heads=2)),
    "pmixer-2024-norm-first": ("sasrec-pytorch", ImportOptions(heads=2, variant="2024-norm-first")),
    "s3rec": ("s3rec", ImportOptions(heads=2)),
    "gsasrec": ("gsasrec", ImportOptions(heads=2)),
    "recbole": ("recbole", ImportOptions()),
    "rectools": ("rectools", ImportOptions()),
}


def nested(arrays):
    tree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = jnp.asarray(array)
    return tree


def batch_of(items, origin):
    """The rows as one sequence each, wherever its padding lies."""
    real = items > 0
    from_start = np.cumsum(real, axis=1) - 1
    positions = from_start if origin == "start" else real.sum(axis=1, keepdims=True) - 1 - from_start
    zeros = jnp.zeros(items.shape, jnp.int32)
    return Batch(
        jnp.asarray(items, jnp.int32),
        jnp.asarray(np.where(real, positions, 0), jnp.int32),
        jnp.asarray(real, jnp.int32),
        zeros,
        jnp.zeros(items.shape, jnp.float32),
    )


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_are_those_of_the_original(name):
    model = read_model(FILES / f"{name}.pth", *CASES[name])
    expected = np.load(FILES / f"{name}.npz")
    items, states = expected["items"].astype(np.int64), expected["states"]
    encoder = model.encoder.build(DataSpec(ITEMS, model.max_length, model.position_origin))
    got = jax.jit(encoder.apply)({"params": nested(model.params)}, batch_of(items, model.position_origin))
    real = items > 0
    assert real.sum() > 15
    assert np.abs(states[real]).max() > 0.5
    np.testing.assert_allclose(np.asarray(got)[real], states[real], atol=1e-4)
    assert model.item_rows == ITEMS
    assert model.max_length == items.shape[1]


def test_every_format_has_a_case():
    assert {name for name, _ in CASES.values()} == set(FORMATS)


def test_settings_that_a_file_holds_are_read():
    recbole = read_model(FILES / "recbole.pth", "recbole")
    assert (recbole.encoder.attention.heads, recbole.encoder.dropout, recbole.objective) == (
        2,
        0.4,
        "cross-entropy",
    )
    assert recbole.assumed == []
    rectools = read_model(FILES / "rectools.pth", "rectools")
    assert rectools.item_ids == [f"film-{i}" for i in range(1, ITEMS + 1)]
    assert (rectools.objective, rectools.encoder.dropout) == ("gbce", 0.3)


def test_an_activation_that_is_not_here_is_no_other():
    file = read_torch_file(FILES / "recbole.pth", FORMATS["recbole"].inert)
    settings = {**dict(file.extra("config", "final_config_dict")), "hidden_act": "tanh"}
    file = dataclasses.replace(file, extras={"config": {"final_config_dict": settings}})
    with pytest.raises(CheckpointError, match=r"trained with hidden_act 'tanh': expected gelu, relu, swish"):
        FORMATS["recbole"]().read(Reader(file, "recbole"), ImportOptions())


@pytest.mark.parametrize("distance", ["dot", "cosine", "euclidean"])
def test_the_similarity_of_rectools_is_read(distance):
    file = read_torch_file(FILES / "rectools.pth", FORMATS["rectools"].inert)
    values = dict(file.extra("hyper_parameters"))
    values["model_config"] = {**values["model_config"], "similarity_module_kwargs": {"distance": distance}}
    reader = Reader(dataclasses.replace(file, extras={"hyper_parameters": values}), "rectools")
    if distance == "euclidean":
        with pytest.raises(CheckpointError, match=r"distance 'euclidean': expected 'dot' or 'cosine'"):
            FORMATS["rectools"]().read(reader, ImportOptions())
    else:
        assert FORMATS["rectools"]().read(reader, ImportOptions()).encoder.similarity == distance


def test_what_is_assumed_and_what_has_no_counterpart_is_said():
    model = read_model(FILES / "s3rec.pth", "s3rec")
    assert set(model.unused) == {"attribute_embeddings.weight", "aap_norm.weight", "aap_norm.bias"}
    assert any("heads 2" in line and "--heads" in line for line in model.assumed)
    assert model.mapping["item_encoder.layer.0.attention.query.weight"] == (
        "layer_0/attention/projections/kernel"
    )


def test_heads_come_from_the_name_of_the_file(tmp_path):
    path = tmp_path / "SASRec.epoch=601.lr=0.001.layer=2.head=2.hidden=4.maxlen=5.pth"
    path.write_bytes((FILES / "pmixer-2020.pth").read_bytes())
    assert read_model(path, "sasrec-pytorch").encoder.attention.heads == 2


# ---- hostile and damaged files


class Payload:
    """Unpickled the usual way, it would make a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


def zipped(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)


def legacy(path, data):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + data)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("write", [zipped, legacy, lambda path, data: path.write_bytes(data)])
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(tmp_path, write, protocol):
    target, path = tmp_path / "planted", tmp_path / "model.pth"
    data = pickle.dumps({"state_dict": {"weight": Payload(target)}}, protocol)
    pickle.loads(data)
    assert target.exists(), "the payload works"
    target.unlink()
    write(path, data)
    with pytest.raises(CheckpointError, match=r"exec.*nothing was executed"):
        read_torch_file(path, inert=("recbole", "yaml"))
    assert not target.exists()


def test_placeholders_of_a_package_do_nothing(tmp_path):
    path = tmp_path / "model.pth"
    zipped(path, b"cos\nsystem\n(S'touch planted'\ntR.")
    model = read_torch_file(FILES / "recbole.pth", inert=("recbole",))
    assert model.extra("config", "final_config_dict", "MODEL_INPUT_TYPE").args == (1,)
    entries = b"crecbole.x\nThing\n)\x81(K\x01K\x02e(K\x03K\x04u."  # a list and a dict of another package
    made = DataUnpickler(io.BytesIO(entries), ("recbole",), Storage).load()
    assert (made.elements, made.get(3)) == ([1, 2], 4)
    with pytest.raises(CheckpointError, match=r"recbole\.config\.configurator\.Config"):
        read_torch_file(FILES / "recbole.pth")
    with pytest.raises(CheckpointError, match=r"os\.system"):
        read_torch_file(path, inert=("recbole",))


@pytest.mark.parametrize("name", ["pmixer-2020", "gsasrec"])
def test_damaged_files_end_in_one_line(tmp_path, name):
    data, path = (FILES / f"{name}.pth").read_bytes(), tmp_path / "model.pth"
    generator = np.random.default_rng(0)
    whole = read_torch_file(FILES / f"{name}.pth").tensors
    refused = 0
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            read_torch_file(path)
    for _ in range(60):
        changed = bytearray(data)
        changed[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        try:
            tensors = read_torch_file(path).tensors
        except CheckpointError:
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in tensors.values())
    assert refused
    assert whole


def test_other_files_are_named_for_what_they_are(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file(tmp_path / "absent.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match="archive of another kind"):
        read_torch_file(tmp_path / "other.zip")


# ---- another architecture


@pytest.mark.parametrize(
    ("name", "format_name", "tensor"),
    [
        ("gsasrec", "sasrec-pytorch", r"item_emb\.weight"),
        ("pmixer-2020", "s3rec", r"item_embeddings\.weight"),
        ("s3rec", "recbole", r"item_embedding\.weight"),
    ],
)
def test_another_architecture_names_the_first_tensor(name, format_name, tensor):
    with pytest.raises(CheckpointError, match=rf"--format {format_name}: expected a tensor {tensor}"):
        read_model(FILES / f"{name}.pth", format_name)


def test_a_tensor_of_another_shape_or_without_a_place_is_named(monkeypatch):
    from jaxrec.interop import importing

    file = read_torch_file(FILES / "gsasrec.pth")
    wide = {**file.tensors, "transformer_blocks.1.dense2.bias": np.zeros(5, np.float32)}
    more = {**file.tensors, "gate.weight": np.zeros((4, 4), np.float32)}
    for tensors, message in (
        (wide, r"expected transformer_blocks\.1\.dense2\.bias \[4\], got \[5\]"),
        (more, r"its tensor gate\.weight \[4, 4\] has no place"),
    ):
        changed = dataclasses.replace(file, tensors=tensors)
        monkeypatch.setattr(importing, "read_torch_file", lambda *_, changed=changed: changed)
        with pytest.raises(CheckpointError, match=message):
            read_model("model.pth", "gsasrec")


def test_options_that_cannot_fit_are_refused():
    with pytest.raises(ConfigError, match=r"--heads must divide the width 4"):
        read_model(FILES / "s3rec.pth", "s3rec", ImportOptions(heads=3))
    with pytest.raises(ConfigError, match="--variant must be one of"):
        read_model(FILES / "s3rec.pth", "s3rec", ImportOptions(variant="2020"))
    with pytest.raises(ConfigError, match="unknown checkpoint format 'sasrec'"):
        read_model(FILES / "s3rec.pth", "sasrec")
    with pytest.raises(CheckpointError, match=r"row 0 of pos_emb\.weight"):
        read_model(FILES / "pmixer-2020.pth", "sasrec-pytorch", ImportOptions(variant="2024"))


# ---- runs


def log(ids, n_users=30, seed=0):
    """Users who walk through the items; ids in an order of their own."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 9, n_users)
    items = np.concatenate([(generator.integers(9) + np.arange(n)) % len(ids) + 1 for n in lengths])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SequenceDataset(
        items.astype(np.int32), offsets, [f"u{i}" for i in range(n_users)], ids, meta={"name": "walks"}
    )


@pytest.fixture(scope="module")
def dataset():
    return log(["5", "3", "9", "1", "2", "8", "4", "7", "6"])


@pytest.fixture(scope="module")
def imported(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("import") / "run"
    report = import_checkpoint(
        FILES / "s3rec.pth",
        "s3rec",
        replace(small_config(), evaluation={"ks": (5,)}),
        workdir,
        dataset=dataset,
    )
    return workdir, report


def test_rows_follow_the_ids_of_the_dataset(dataset, imported):
    workdir, report = imported
    assert "no counterpart:" in report.lines()
    table = Run(workdir, dataset).params()["items"]["table"]
    theirs = read_torch_file(FILES / "s3rec.pth").tensors["item_embeddings.weight"]
    np.testing.assert_array_equal(table[0], theirs[0])
    for row, name in enumerate(dataset.item_ids, start=1):
        np.testing.assert_array_equal(table[row], theirs[int(name)])


def test_a_run_names_the_dataset_that_was_given(dataset, tmp_path, imported):
    """Not the one of the configuration, whose fingerprint is another."""
    config = replace(small_config(), evaluation={"ks": (5,)})
    dataset.save(tmp_path / "data")
    saved = open_dataset(tmp_path / "data")
    import_checkpoint(FILES / "s3rec.pth", "s3rec", config, tmp_path / "run", dataset=saved)
    assert Run(tmp_path / "run").dataset.fingerprint == dataset.fingerprint
    with pytest.raises(DataError, match="in memory"):
        _ = Run(imported[0]).dataset


def test_an_imported_run_evaluates_and_recommends(dataset, imported):
    workdir, _ = imported
    run = Run(workdir, dataset)
    assert run.results["training"]["steps"] == 0
    assert run.evaluate("test")[0].metrics["HR@5"] == pytest.approx(run.metrics["HR@5"])
    history, scores = ["3", "9", "1"], {}
    answer = Recommender.load(workdir).recommend([history], k=6)[0]
    model = read_model(FILES / "s3rec.pth", "s3rec")
    encoder = model.encoder.build(DataSpec(ITEMS, model.max_length, model.position_origin))
    items = np.array([[int(name) for name in history]])
    states = jax.jit(encoder.apply)({"params": nested(model.params)}, batch_of(items, "end"))
    for row in range(1, ITEMS + 1):
        scores[str(row)] = float(states[0, -1] @ model.params["items/table"][row])
    best = sorted((name for name in scores if name not in history), key=lambda name: -scores[name])
    assert answer.items == best
    np.testing.assert_allclose(answer.scores, [scores[name] for name in best], atol=1e-5)


@pytest.mark.slow
def test_training_goes_on_from_an_imported_run(dataset, imported, tmp_path, standard_promotion):
    workdir, _ = imported
    config = named_config(str(workdir)).updated(
        {"training.init_from": str(workdir), "training.epochs": 1, "training.checkpoint_seconds": 0}
    )
    tuned = fit(dataset, config, tmp_path / "tuned", progress=False)
    before, after = Run(workdir, dataset).params(), Run(tmp_path / "tuned", dataset).params()
    assert tuned.results["training"]["steps"] > 0
    shift = np.abs(before["items"]["table"] - after["items"]["table"]).max()
    assert 0 < shift < 0.2


def test_a_run_that_is_there_is_left_alone(dataset, imported):
    workdir, _ = imported
    with pytest.raises(RunExistsError, match="not empty"):
        import_checkpoint(FILES / "s3rec.pth", "s3rec", Run(workdir).config, workdir, dataset=dataset)
    file = workdir / "s3rec.pth"
    file.write_bytes((FILES / "s3rec.pth").read_bytes())
    with pytest.raises(RunExistsError, match=rf"FILE {file} is in the out {workdir}.*choose another --out"):
        import_checkpoint(file, "s3rec", Run(workdir).config, workdir, dataset=dataset, overwrite=True)
    file.unlink()


def test_items_without_a_row_and_wrong_lists_of_ids_are_refused(dataset):
    model = read_model(FILES / "recbole.pth", "recbole")
    with pytest.raises(DataError, match="give --items"):
        item_rows(model, "recbole", dataset, None)
    with pytest.raises(DataError, match="each of the 9 items of the checkpoint, got 8"):
        item_rows(model, "recbole", dataset, list("12345678"))
    with pytest.raises(DataError, match="1 repeated"):
        item_rows(model, "recbole", dataset, list("123456788"))
    with pytest.raises(
        DataError, match="1 of the 9 items of --data have no row in the checkpoint, the first '9'"
    ):
        item_rows(model, "recbole", dataset, list("12345678x"))
    np.testing.assert_array_equal(
        item_rows(model, "recbole", dataset, list("987654321")), [0, 5, 7, 1, 9, 8, 2, 6, 3, 4]
    )


def test_the_command_names_what_it_refuses(tmp_path, capsys):
    path = tmp_path / "model.pth"
    legacy(path, pickle.dumps(Payload(tmp_path / "planted"), 2))
    assert main(["import", str(path), "--format", "s3rec", "--out", str(tmp_path / "run")]) == 1
    assert "nothing was executed" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["model.pth"]


def test_a_run_directory_is_a_preset(tmp_path):
    config = small_config(training={"init_from": "runs/before", "epochs": 7})
    save_config(config, tmp_path / "config.json")
    assert named_config(str(tmp_path)) == config.updated({"training.init_from": ""})
    with pytest.raises(ConfigError, match="unknown preset"):
        named_config(str(tmp_path / "absent"))


@pytest.mark.slow
def test_the_command_imports(tmp_path, capsys):
    rows = ["user_id,item_id,timestamp"]
    rows += [f"u{u},film-{(u + t) % ITEMS + 1},{t}" for u in range(20) for t in range(5)]
    data = tmp_path / "log.csv"
    data.write_text("\n".join(rows))
    words = [str(FILES / "rectools.pth"), "--format", "rectools", "--data", str(data)]
    assert main(["import", *words, "--out", str(tmp_path / "run"), "--evaluation.ks", "5"]) == 0
    shown = capsys.readouterr().out
    assert "--encoder.block original" in shown
    assert "--batches.position-origin end" in shown
    assert main(["recommend", str(tmp_path / "run"), "--history", "film-1", "-k", "3"]) == 0
    assert main(["import", *words, "--out", str(tmp_path / "run"), "--evaluation.ks", "5"]) == 1
    assert "--overwrite" in capsys.readouterr().err
