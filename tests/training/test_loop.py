import dataclasses
import json
import shlex
import signal
import sys
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import TrainingConfig, load_config
from jaxrec.data.batches import BatchConfig
from jaxrec.data.sampler import Position
from jaxrec.errors import CheckpointError, ConfigError, DataError, Interrupted, NonFiniteError, RunExistsError
from jaxrec.evaluation.baselines import evaluate_baselines
from jaxrec.training import loop
from jaxrec.training.feed import device_rows
from jaxrec.training.logging import MetricsLog, read_metrics
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare, schedule_steps
from jaxrec.training.state import TrainState
from jaxrec.training.step import make_train_chunk
from tests.helpers import StopAfter, assert_same_run, replace, small_config, small_dataset

DATASET = small_dataset()


def quiet(config, workdir=None, **options):
    return train(config, DATASET, workdir, progress=False, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return quiet(small_config(), tmp_path_factory.mktemp("runs") / "whole")


def test_training_learns(uninterrupted):
    """The order of items, which their counts do not tell."""
    baselines = evaluate_baselines(uninterrupted.setup.split, "test", uninterrupted.setup.config.evaluation)
    assert uninterrupted.test[0].metrics["NDCG@10"] > 2 * baselines["popularity"].metrics["NDCG@10"]
    losses = [line["loss"][0] for line in read_metrics(uninterrupted.workdir / "log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_rerun_is_the_same_to_the_bit(uninterrupted):
    assert_same_run(uninterrupted, quiet(small_config()))


@pytest.mark.parametrize("looks", [0, 2, 3])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(uninterrupted, tmp_path, monkeypatch, looks):
    monkeypatch.setattr(loop, "StopRequest", StopAfter(looks))
    workdir = tmp_path / "my run"
    with pytest.raises(
        Interrupted, match=r"stopped at step \d+ of \d+ and saved; continue with: jaxrec train"
    ) as stopped:
        quiet(small_config(), workdir)
    monkeypatch.undo()
    command = shlex.split(str(stopped.value).partition("continue with: ")[2])
    assert command == ["jaxrec", "train", "--workdir", str(workdir), "--resume"]
    resumed = quiet(small_config(), workdir, resume=True)
    assert_same_run(uninterrupted, resumed)
    without_clock = [
        [
            {k: v for k, v in line.items() if "second" not in k}
            for line in read_metrics(run.workdir / "log.jsonl")
        ]
        for run in (uninterrupted, resumed)
    ]
    assert without_clock[0] == without_clock[1]


def test_resume_after_the_end_only_reports(uninterrupted):
    assert_same_run(uninterrupted, quiet(small_config(), uninterrupted.workdir, resume=True))


def test_more_epochs_on_resume(tmp_path):
    longer = replace(small_config(), training={"epochs": 9})
    whole = quiet(longer)
    quiet(small_config(), tmp_path / "run")
    assert_same_run(whole, quiet(longer, tmp_path / "run", resume=True))


def test_refused_resumes(uninterrupted, tmp_path):
    run = uninterrupted.workdir
    with pytest.raises(CheckpointError, match=r"another configuration: encoder\.width: saved 16, given 32"):
        quiet(small_config(encoder={"width": 32}), run, resume=True)
    with pytest.raises(CheckpointError, match="trained on a dataset with fingerprint"):
        train(small_config(), small_dataset(seed=1), run, resume=True, progress=False)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        quiet(small_config(), tmp_path / "absent", resume=True)
    with pytest.raises(ConfigError, match="resume needs a workdir"):
        quiet(small_config(), resume=True)
    cosine = small_config(optimizer={"schedule": "cosine"})
    quiet(cosine, tmp_path / "cosine")
    with pytest.raises(CheckpointError, match=r"training\.epochs: saved 6, given 9"):
        quiet(replace(cosine, training={"epochs": 9}), tmp_path / "cosine", resume=True)


def test_existing_run_is_not_overwritten_unasked(uninterrupted, tmp_path):
    def files():
        found = (path for path in uninterrupted.workdir.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in found}

    before = files()
    with pytest.raises(RunExistsError, match=r"is not empty.*--resume.*--overwrite.*another --workdir"):
        quiet(small_config(), uninterrupted.workdir)
    assert before == files()
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("precious")
    with pytest.raises(RunExistsError, match=r"holds no run .*no config\.json.* leaves it alone"):
        quiet(small_config(), foreign, overwrite=True)
    assert (foreign / "chapter1.tex").read_text() == "precious"
    with pytest.raises(RunExistsError, match="is a file"):
        quiet(small_config(), foreign / "chapter1.tex")


def test_overwrite(tmp_path):
    quiet(small_config(training={"epochs": 1}), tmp_path / "run")
    second = quiet(small_config(training={"epochs": 2}), tmp_path / "run", overwrite=True)
    assert json.loads((second.workdir / "config.json").read_text())["training"]["epochs"] == 2


def test_non_finite_loss_names_step_and_checkpoint(tmp_path):
    wild = small_config(optimizer={"algorithm": "sgd", "learning_rate": 1e30})
    with pytest.raises(
        NonFiniteError,
        match=r"at step \d+ \(seed 0\).*--optimizer\.clip-norm.*no checkpoint was written.*-rate 0\.1$",
    ):
        quiet(wild, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("over_seeds", ["map", "vmap"])
def test_several_seeds_are_the_single_runs(uninterrupted, over_seeds):
    """Each seed of one program is the run of that seed alone, up to rounding of batched products."""
    config = small_config(training={"seeds": (1, 0), "over_seeds": over_seeds, "epochs": 2})
    both = quiet(config)
    for index, seed in enumerate((1, 0)):
        alone = quiet(replace(config, training={"seeds": (seed,)}))
        chex.assert_trees_all_close(both.seed_params(index), alone.seed_params(), atol=1e-4)
    assert not np.allclose(both.params["items"]["table"][0], both.params["items"]["table"][1])


def test_patience_stops_each_seed_and_freezes_its_best():
    host_state, training = loop.HostState.start(2), TrainingConfig(patience=2)
    assert host_state.update([0.1, 0.5], 10, training).tolist() == [True, True]
    assert host_state.update([0.2, 0.4], 20, training).tolist() == [True, False]
    assert host_state.update([0.3, 0.3], 30, training).tolist() == [True, False]
    assert host_state.stopped == [False, True]
    assert host_state.update([0.2, 0.9], 40, training).tolist() == [False, False]
    assert (host_state.best, host_state.best_step) == ([0.3, 0.5], [30, 10])
    for state in (host_state, loop.HostState.start(1)):
        record = json.loads(json.dumps({"host_state": state.dump()}))
        assert loop.HostState.load(record) == state
        assert loop.HostState.load({"ledger": record["host_state"]}) == state, "of version 0.1"


def test_more_patience_on_resume_trains_on(tmp_path, monkeypatch):
    """To the bits of the run that had it from the start."""
    monkeypatch.setattr(loop, "_scores", lambda setup, run, store, active: [1 / run.step])
    config = small_config(training={"patience": 1, "epochs": 5})
    assert quiet(config, tmp_path / "run", rank=False).host_state.waited == [1]
    patient = replace(config, training={"patience": 2})
    resumed = quiet(patient, tmp_path / "run", resume=True, rank=False)
    assert resumed.host_state.waited == [2]
    assert_same_run(quiet(patient, rank=False), resumed)
    assert load_config(tmp_path / "run" / "config.json") == patient


def test_fewer_epochs_than_a_run_has_are_refused_on_resume(tmp_path):
    """Its results would name epochs that are not those of its parameters."""
    config = small_config(training={"epochs": 4, "evaluate_every": 2})
    quiet(config, tmp_path / "run", rank=False)
    with pytest.raises(
        CheckpointError, match=r"--training\.epochs 2, which are .* steps: the run has .* 4 epochs"
    ):
        quiet(replace(config, training={"epochs": 2}), tmp_path / "run", resume=True, rank=False)
    assert load_config(tmp_path / "run" / "config.json") == config


def test_patience_that_a_seed_ended_without_is_refused_on_resume():
    state = loop.HostState.start(2)
    state.best_step, state.waited, state.stopped = [10, 20], [2, 2], [True, True]
    state.extend_patience(TrainingConfig(patience=2, seeds=(4, 5)), 40, 10)
    assert state.stopped == [True, True]
    for patience in (0, 3):
        with pytest.raises(
            CheckpointError, match=rf"patience {patience}: seed 4 ended at step 30.* step 40 .*2 at most"
        ):
            state.extend_patience(TrainingConfig(patience=patience, seeds=(4, 5)), 40, 10)


def test_a_run_says_where_its_epochs_are_rounded():
    setup = prepare(small_config(training={"epochs": 2, "evaluate_every": 1}), DATASET)
    progress = loop._Progress(None, None, loop.HostState.start(1), setup.schedule.total_steps)
    (ended,) = loop._remarks(setup, progress, finished=True)
    assert ended.startswith("nothing left to train: the run has its ")
    assert ended.endswith(" steps (--training.epochs 2); give a greater value to go on\n")
    longer = dataclasses.replace(setup, config=replace(setup.config, training={"epochs": 2.4}))
    (rounded,) = loop._remarks(longer, progress, finished=False)
    assert rounded.startswith("--training.epochs 2.4 becomes 2.0: a run ends with a validation, ")


@pytest.mark.slow
def test_a_seed_that_has_ended_costs_nothing_and_changes_nothing(tmp_path, monkeypatch):
    """The second of two seeds gets worse and worse on validation, so that its patience ends."""
    config = small_config(training={"seeds": (1, 0), "epochs": 6, "patience": 2})
    ranked, steps = [], []
    evaluate, scores = loop._evaluate, loop._scores

    def noted(setup, params, split, seeds=None):
        ranked.append(None if seeds is None else list(seeds))
        return evaluate(setup, params, split, seeds)

    def worse(setup, run, store, active):
        steps.append(np.asarray(run.state.step).tolist())
        second = scores(setup, run, store, active)[1]
        return [run.step / 1000, -run.step / 1000 if active[1] else second]

    monkeypatch.setattr(loop, "_scores", worse)
    monkeypatch.setattr(loop, "_evaluate", noted)
    whole = quiet(config, tmp_path / "whole")
    assert whole.host_state.stopped == [False, True]
    assert ranked[:3] == [[0, 1]] * 3
    assert ranked[3:-2] == [[0]] * (len(ranked) - 5) != []
    ends = steps[2][1]
    assert [own for _, own in steps[2:]] == [ends] * len(steps[2:])
    assert steps[-1][0] == whole.steps > ends
    lines = read_metrics(tmp_path / "whole" / "log.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert all(None not in line["loss"] for line in lines if "loss" in line and line["step"] <= ends)
    assert losses[-1][0] > 0
    assert losses[-1][1] is None
    assert [line["valid"]["NDCG@10"][1] for line in lines if "valid" in line][3:] == [None] * (len(steps) - 3)

    alone = quiet(replace(config, training={"patience": 0}))
    chex.assert_trees_all_close(whole.seed_params(0), alone.seed_params(0), atol=1e-4)
    monkeypatch.setattr(loop, "StopRequest", StopAfter(4))
    with pytest.raises(Interrupted):
        quiet(config, tmp_path / "run")
    monkeypatch.setattr(loop, "StopRequest", StopAfter(10**6))
    assert_same_run(whole, quiet(config, tmp_path / "run", resume=True))


@pytest.mark.parametrize("mode", ["packed", "padded", "prefix"])
def test_one_compilation_for_a_whole_run(mode, monkeypatch):
    """Every chunk, across epochs of differing numbers of rows, has the shapes of the first."""
    traces = []
    from jaxrec.training import step

    original = step.train_step
    monkeypatch.setattr(step, "train_step", lambda *a: traces.append(1) or original(*a))
    quiet(small_config(batches={"mode": mode}, training={"epochs": 4}))
    assert len(traces) == 1


@pytest.mark.slow
def test_chunks_of_any_length_give_the_same_state():
    """One chunk of eight steps, two of four, or three and five: the same bits."""
    setup = prepare(small_config(), DATASET)
    from jaxrec.training.state import initial_state

    chunk = make_train_chunk(setup.task, setup.optimizer, setup.config.batches)
    stream = setup.streams[0]

    def run(lengths):
        state = jax.vmap(lambda s: initial_state(setup.task, setup.optimizer, s))(np.array([7], np.uint32))
        position = Position()
        for k in lengths:
            rows, position = stream.take(position, k * 4)
            state, _ = chunk(state, device_rows([rows], k), setup.resources)
        return state

    whole = run([8])
    assert isinstance(whole, TrainState)
    assert int(whole.step[0]) == 8
    chex.assert_trees_all_equal(whole, run([4, 4]), run([3, 5]))


def test_packed_and_padded_batches_have_the_same_gradient():
    """The same sequences, packed or padded, give the same loss and gradient without dropout."""
    from jaxrec.data.batches import gather_batch
    from jaxrec.data.packing import pack, pad
    from jaxrec.data.sampler import training_sequences
    from jaxrec.training.state import initial_state
    from jaxrec.training.step import batch_loss

    setup = prepare(small_config(encoder={"dropout": 0.0}), DATASET)
    state = initial_state(setup.task, setup.optimizer, jnp.uint32(0))
    sequences = training_sequences(setup.split.train_starts, setup.split.train_stops, 16)

    def loss_and_gradient(rows):
        batch = gather_batch(rows, np.asarray(DATASET.items), max_length=16)
        key = jax.random.key(0)
        loss = lambda p: batch_loss(setup.task, p, batch, key, setup.resources)[0]  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(state.params)

    chex.assert_trees_all_close(
        loss_and_gradient(pack(sequences, 16)), loss_and_gradient(pad(sequences)), rtol=2e-4, atol=2e-4
    )


def test_plan_cuts_runs_into_equal_chunks():
    config = small_config(
        batches={"batch_size": 10}, training={"epochs": 10, "evaluate_every": 2, "chunk_steps": 7}
    )
    plan = schedule_steps(config, rows_per_epoch=105)
    assert (plan.chunk_steps, plan.chunks_per_evaluation) == (7, 3)
    assert plan.evaluation_steps == 21
    assert plan.evaluations * 21 == plan.total_steps == 105
    assert schedule_steps(config, rows_per_epoch=1).chunk_steps == 2, "a loop of one trip rounds differently"


def test_a_seed_trains_as_long_alone_as_beside_others():
    """Packing gives this seed another number of rows than seed 0, which the schedule of both follows."""
    setups = [prepare(small_config(training={"seeds": seeds}), small_dataset()) for seeds in ((2,), (0, 2))]
    assert setups[0].streams[0].rows_per_epoch != setups[1].streams[0].rows_per_epoch
    assert setups[0].schedule == setups[1].schedule


def test_signals_are_seen_and_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with loop.StopRequest() as stop:
        assert stop.signal_number is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before, "a second signal acts at once"
    assert signal.getsignal(signal.SIGTERM) is before


def test_training_outside_the_main_thread():
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(quiet(small_config(training={"epochs": 1}))))
    thread.start()
    thread.join()
    assert outcome[0].steps > 0


def test_journal_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "log.jsonl"
    first = MetricsLog(path)
    for step in (2, 4, 6):
        first.write(step=step)
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [line["step"] for line in read_metrics(path)] == [2, 4, 6]
    second = MetricsLog(path, resume_step=4)
    assert [line["step"] for line in read_metrics(path)] == [2, 4]
    assert {"step": 4} in second
    assert {"step": 6} not in second


def test_journal_keeps_no_line_in_memory(tmp_path):
    """A run of days writes millions."""
    log = MetricsLog(tmp_path / "log.jsonl")
    log.write(step=0, loss=[0.0])
    before = sys.getallocatedblocks()
    for step in range(500):
        log.write(step=step, loss=[step / 7])
    assert sys.getallocatedblocks() - before < 500


def test_lists_longer_than_the_catalogue_are_refused():
    with pytest.raises(
        DataError, match=r"--evaluation\.ks asks for lists of 50, but the catalogue has 40 items"
    ):
        quiet(small_config(evaluation={"ks": (10, 50)}))


def test_batches_shorter_than_the_chunk_are_refused():
    with pytest.raises(ConfigError, match=r"--training\.chunk-steps must be an integer at least 2; got 1"):
        small_config(training={"chunk_steps": 1})
    with pytest.raises(ConfigError, match=r"training\.metric must be one of HR@5.*got 'NDCG@20'"):
        small_config(training={"metric": "NDCG@20"})
    assert BatchConfig(mode="prefix").last_only
