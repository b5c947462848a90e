"""Studies: the defaults first, nothing twice, one trial a process, and what is refused."""

import contextlib
import dataclasses
import fcntl
import json
import signal

import numpy as np
import pytest

from jaxrec.errors import ConfigError, Interrupted, NonFiniteError, RunExistsError
from jaxrec.files import LOCK
from jaxrec.training.loop import Validation
from jaxrec.tuning import study as module
from jaxrec.tuning.space import search_space
from jaxrec.tuning.study import StudyOptions, import_optuna, open_study
from tests.helpers import small_config, small_dataset


class Host:
    """Part of a trained run that a study reads."""

    def __init__(self, best):
        self.best = best


class Fitted:
    def __init__(self, best):
        self.host_state = Host(best)


class Trainer:
    """In place of training: the score is the closeness of beta1 to 0.5, at three validations."""

    def __init__(self):
        self.trained = []
        self.stop_at = None
        self.refused = None

    def __call__(self, config, dataset, folder, *, resume, progress, on_validation, rank):
        assert not rank
        assert not progress
        beta1 = config.optimizer.beta1
        if beta1 == self.refused:
            raise ConfigError("these options do not go together")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        for number in (1, 2, 3):
            if self.stop_at == (len(self.trained), number):
                self.stop_at = None
                raise Interrupted("stopped", signal.SIGTERM)
            if beta1 > 0.97:
                raise NonFiniteError("the loss is not finite")
            score = (1 - abs(beta1 - 0.5)) * number / 3
            on_validation(Validation(number, number * 10, [score, score], number == 3))
        self.trained.append((folder.name, resume, beta1))
        return Fitted([score, score])


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer()
    monkeypatch.setattr(module, "train", trainer)
    return trainer


DATASET, CONFIG = small_dataset(n_users=8), small_config()


def opened(folder, space, budget, **options):
    return open_study(
        folder, CONFIG, search_space(CONFIG, space), DATASET, StudyOptions(budget=budget, **options)
    )


def test_defaults_first_then_draws_and_nothing_twice(tmp_path, trainer):
    with opened(tmp_path / "a", {"optimizer.beta1": "0.1:0.9"}, 4) as study:
        study.run(progress=False)
        trials = study.trials()
    assert trials[0].options == {"optimizer.beta1": CONFIG.optimizer.beta1}
    assert [trial.default for trial in trials] == [True, False, False, False]
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert trials[1].scores.keys() == {1, 2, 3}
    assert trials[1].score == pytest.approx(1 - abs(trials[1].options["optimizer.beta1"] - 0.5))
    with opened(tmp_path / "a", {"optimizer.beta1": "0.1:0.9"}, 4) as study:
        study.run()
    assert len(trainer.trained) == 4


def test_any_name_of_a_directory(tmp_path, trainer):
    for name in ("a?b", "{c}", "d%20#e"):
        with opened(tmp_path / name, {"optimizer.beta1": "0.1:0.9"}, 1) as study:
            study.run(progress=False)
            assert [trial.name for trial in study.trials()] == ["000"]
        assert (tmp_path / name / "study.db").is_file()
    assert len(list(tmp_path.iterdir())) == 3


def test_interrupted_trial_is_resumed_and_the_draws_are_the_same(tmp_path, trainer):
    space = {"optimizer.beta1": "0.1:0.9"}
    with opened(tmp_path / "whole", space, 5) as study:
        study.run(progress=False)
        whole = study.trials()
    trainer.trained.clear()
    trainer.stop_at = (2, 2)
    with (
        pytest.raises(Interrupted, match="trial 002, whose state is saved"),
        opened(tmp_path / "cut", space, 5) as study,
    ):
        study.run(progress=False)
    with opened(tmp_path / "cut", space, 5) as study:
        assert [trial.state for trial in study.trials()] == ["complete", "complete", "running"]
        study.run(progress=False)
        assert study.trials() == whole
    assert [(name, resume) for name, resume, _ in trainer.trained] == [
        ("000", False), ("001", False), ("002", True), ("003", False), ("004", False)
    ]  # fmt: skip


def test_process_that_died_before_training_leaves_nothing_behind(tmp_path, trainer):
    """Half a directory, or a trial without options."""
    space = {"optimizer.beta1": [0.2, 0.4, 0.6]}
    with opened(tmp_path / "a", space, 3) as study:
        study._study.ask({})
        trial = study._study.ask(study._distributions)
        (tmp_path / "a/trials/001/checkpoints").mkdir(parents=True)
        (tmp_path / "a/trials/001/.config.json.1.tmp").write_text("{")
        study.run(progress=False)
        assert [t.number for t in study.trials()] == [1, 2, 3]
        assert study.trials()[0].options == trial.params
        assert any(t.default for t in study.trials())
    assert not (tmp_path / "a/trials/001/.config.json.1.tmp").exists()


def test_trial_of_a_living_process_is_left_alone(tmp_path, trainer):
    with opened(tmp_path / "a", {"optimizer.beta1": "0.1:0.9"}, 3) as study:
        other = tmp_path / "a/trials" / f"{study._study.ask(study._distributions).number:03d}"
        other.mkdir(parents=True)
        with (other / LOCK).open(
            "w"
        ) as held:  # a lock belongs to an open file, so this one is as good as another's
            fcntl.flock(held, fcntl.LOCK_EX)
            study.run(progress=False)
            assert [trial.state for trial in study.trials()] == ["running", "complete", "complete"]
        study.run(progress=False)
        assert [trial.state for trial in study.trials()] == ["complete"] * 3


@pytest.mark.slow
def test_defaults_that_lag_behind_other_processes_are_trained_to_their_end(tmp_path, trainer):
    """Or the outcome could be worse than that of the defaults; alone they come first and lag behind nothing."""
    space = {"optimizer.beta1": list(np.linspace(0.4, 0.6, 6))}
    with opened(tmp_path / "a", space, 7) as study:
        with contextlib.ExitStack() as stack:
            study._take(stack)
        other = tmp_path / "a/trials/000"
        other.mkdir(parents=True)
        with (other / LOCK).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            study.run(progress=False)
        study.run(progress=False)
        states = [trial.state for trial in study.trials()]
        assert study.trials()[0].default
    assert states[0] == "complete"
    assert len(states) == 7


def test_trial_that_ends_while_its_lock_is_taken_is_left_alone(tmp_path, trainer, monkeypatch):
    """The list of trials is from before the other process recorded its end and let go of the lock."""
    with opened(tmp_path / "a", {"optimizer.beta1": "0.1:0.9"}, 2) as study:
        other = study._study.ask(study._distributions).number
        free, ended = module.run_lock, []

        @contextlib.contextmanager
        def late(folder):
            if folder.name == "000" and not ended:
                ended.append(folder)
                study._tell(other, "FAIL")
            with free(folder):
                yield

        monkeypatch.setattr(module, "run_lock", late)
        study.run(progress=False)
        assert ended
        assert [trial.state for trial in study.trials()] == ["failed", "complete"]
    assert [name for name, _, _ in trainer.trained] == ["001"]


def test_a_small_space_is_searched_to_its_end_without_repeats(tmp_path, trainer):
    space = {"optimizer.beta1": [0.2, 0.4], "encoder.layers": "1:2"}
    with opened(tmp_path / "a", space, 6) as study:  # 3 values of beta1 with the default
        study.run(progress=False)
        trials = study.trials()
    assert len({tuple(trial.options.values()) for trial in trials}) == len(trials) == 6


def test_impossible_combinations_cost_nothing(tmp_path, trainer):
    space = {"encoder.attention.heads": [1, 3], "optimizer.beta1": [0.2, 0.4]}
    with opened(tmp_path / "a", space, 5) as study:  # width 16 takes no 3 heads: 3 of 6 points
        study.run(progress=False)
        assert sorted(trial.options["optimizer.beta1"] for trial in study.trials()) == [0.2, 0.4, 0.9]
        assert {trial.options["encoder.attention.heads"] for trial in study.trials()} == {1}


def test_what_training_refuses_does_not_end_the_study(tmp_path, trainer, capsys):
    trainer.refused = 0.4
    with opened(tmp_path / "a", {"optimizer.beta1": [0.2, 0.4]}, 3) as study:
        study.run()
        assert {trial.options["optimizer.beta1"] for trial in study.trials()} == {0.2, 0.9}
        numbers = [trial.name for trial in study.trials()]
        assert {trial.state for trial in study.trials()} == {"complete"}
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"trial {numbers[n]}, {n + 1} of 3" for n in (0, 1)]
    trainer.refused = 0.9
    with (
        pytest.raises(ConfigError, match="these options do not go together"),
        opened(tmp_path / "b", {"optimizer.beta1": [0.2, 0.4]}, 3) as study,
    ):
        study.run(progress=False)


def test_lagging_trials_are_pruned_and_failed_ones_are_not_repeated(tmp_path, trainer, capsys):
    with opened(tmp_path / "a", {"optimizer.beta1": [0.98, *np.linspace(0.05, 0.85, 15)]}, 16) as study:
        study.run()
        trials = study.trials()
        assert study.path(trials[3]) == tmp_path / "a/trials" / trials[3].name
    states = [trial.state for trial in trials]
    assert len(trials) == 16
    assert states.count("pruned") > 1
    failed = [trial for trial in trials if trial.state == "failed"]
    assert all(trial.options["optimizer.beta1"] == 0.98 and "finite" in trial.reason for trial in failed)
    best = max(trial.score for trial in trials if trial.state == "complete")
    assert all(trial.score < best for trial in trials if trial.state == "pruned")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 16
    assert lines[0] == "trial 000, 1 of 16: complete, valid NDCG@10 0.6000  (optimizer.beta1 0.9)"
    trainer.trained.clear()
    with opened(
        tmp_path / "b", {"optimizer.beta1": list(np.linspace(0.05, 0.85, 15))}, 15, pruner="none"
    ) as study:
        study.run(progress=False)
        assert {trial.state for trial in study.trials()} == {"complete"}


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (0, ["--budget must be an integer at least 1; got 0"]),
        (9, ["at most the 3 points of the space; got 9"]),
    ],
)
def test_impossible_budget(tmp_path, budget, words):
    with pytest.raises(ConfigError) as error, opened(tmp_path / "a", {"optimizer.beta1": [0.2, 0.4]}, budget):
        pass
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "a").exists()


def test_what_belongs_to_another_study_is_refused(tmp_path, trainer):
    space = {"optimizer.beta1": [0.2, 0.4]}
    with opened(tmp_path / "a", space, 3) as study:
        study.run(progress=False)
    before = (tmp_path / "a/study.json").read_text()
    other = search_space(CONFIG, {"optimizer.beta1": [0.2, 0.5]})
    options = StudyOptions(budget=3)
    cases = [
        (
            CONFIG,
            search_space(CONFIG, space),
            small_dataset(n_users=9),
            "a study of another dataset: expected 'walks'",
        ),
        (
            CONFIG.updated({"encoder.width": 8}),
            search_space(CONFIG, space),
            DATASET,
            "encoder.width: has 16, got 8",
        ),
        (
            CONFIG,
            other,
            DATASET,
            "a study of another space: optimizer.beta1: has [0.9, 0.2, 0.4], got [0.9, 0.2, 0.5]",
        ),
    ]
    for config, dimensions, dataset, words in cases:
        with (
            pytest.raises(ConfigError) as error,
            open_study(tmp_path / "a", config, dimensions, dataset, options),
        ):
            pass
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert (tmp_path / "a/study.json").read_text() == before
    with pytest.raises(ConfigError, match="at least the 3 trials"), opened(tmp_path / "a", space, 2) as study:
        study.run(progress=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/letter.txt").write_text("")
    with pytest.raises(RunExistsError, match="files but no study"), opened(tmp_path / "b", space, 2):
        pass
    vectors = np.ones((DATASET.n_items, 3), np.float32)
    described = dataclasses.replace(DATASET, item_vectors=vectors)
    assert described.fingerprint == DATASET.fingerprint
    with (
        pytest.raises(
            ConfigError, match=r"a study with other vectors of items: expected those of digest none, got \w"
        ),
        open_study(tmp_path / "a", CONFIG, search_space(CONFIG, space), described, options),
    ):
        pass
    # As an earlier version wrote it: without digests, and with an option that has gone since.
    earlier = json.loads(before)
    earlier["dataset"] = {name: earlier["dataset"][name] for name in ("name", "fingerprint")}
    earlier["config"]["objective"]["cosine"] = False
    del earlier["config"]["encoder"]["similarity"]
    (tmp_path / "a/study.json").write_text(json.dumps(earlier))
    with opened(tmp_path / "a", space, 3) as study:
        study.run(progress=False)
    (tmp_path / "a/study.json").write_text("[")
    with pytest.raises(ConfigError, match="is damaged"), opened(tmp_path / "a", space, 3):
        pass


def test_without_optuna(monkeypatch):
    assert import_optuna().__name__ == "optuna"
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrec\[tune\]'"):
        import_optuna()
