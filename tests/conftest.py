"""Strict JAX for every test, two tiers of tests, and shapes checked at run time.

- Eight host devices, no silent promotion of types or ranks. A module whose tests use optax, which promotes types itself,
  requests `standard_promotion`.
- ``pytest`` runs the first tier: all tests without the marker ``slow``. ``pytest --all`` runs both tiers; ``-m``
  and node ids select as always.
- Functions whose annotations carry jaxtyping shapes are checked with beartype (`tests.shapes`).
- Most of the time goes into compiling. LLVM does not optimise here (`tests.flags`), and the processes of one session share
  one cache of compiled programs, new for each session; ``JAX_COMPILATION_CACHE_DIR=DIR pytest`` uses a lasting one. The
  processes of `tests/training/test_kill.py` compile as users do.
"""

import gc
import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.flags import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", xla_flags())
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jaxtyping
import pytest

import tests.shapes  # noqa: F401  (the import hook below looks it up)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

#: The first process of a session makes the cache and removes it; workers of xdist inherit the variable.
_SESSION_CACHE = "JAXREC_TEST_SESSION_CACHE"
_OWNED = not (os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.environ.get(_SESSION_CACHE))
if _OWNED:
    os.environ[_SESSION_CACHE] = tempfile.mkdtemp(prefix="jaxrec-tests-")
COMPILED = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.environ[_SESSION_CACHE]
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

#: Modules whose signatures carry shapes.
SHAPED = [
    ".".join(path.relative_to(Path(__file__).parents[1]).with_suffix("").parts)
    for path in sorted((Path(__file__).parents[1] / "jaxrec").rglob("*.py"))
    if path.name != "__init__.py" and "jaxtyping" in path.read_text()
]
jaxtyping.install_import_hook(SHAPED, "tests.shapes.check")


#: A tenth of the time went into looking for cycles among the objects of programs, nearly all of which stay.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_unconfigure() -> None:
    if _OWNED:
        shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run every test, slow ones too")


#: Files whose tests run over a long table of cases: the first tier takes the first case of each kind, and the others count
#: as slow. A kind is the part of a case's name before the first "-", "=" or "(".
TABLES = (
    "tests/attention/test_groups.py",
    "tests/attention/test_mechanisms.py",
    "tests/models/test_selection.py",
)
#: Further slow tests, by measured time: cases that differ in an option from one that the first tier has, and whole paths
#: that a cheaper test of the first tier calls, too.
SLOW = re.compile(
    r"models/test_encoders.py::\w+\[(?!(pre-norm|stosa|gru4rec|srgnn)\])"
    r"|models/test_stosa.py::\w+\[(?!(auto|none)\])"
    r"|objectives/test_formulas.py::\w+\[(gathered, chunks|all scored, chunks|all scored)-"
    r"|objectives/test_objectives.py::test_(bfloat16|works_under_vmap)\w*\[(?!(cross-entropy|sampled-softmax|bce)\b)"
    r"|objectives/test_sharding.py::test_(eight_devices_equal_one|every_objective_on_a_split_table)"
    r"|objectives/test_samplers.py::test_a_user_who_has_seen_everything"
    r"|objectives/test_cross_entropy.py::test_over_seeds"
    r"|training/test_loop.py::test_(non_finite_loss|more_(epochs|patience)_on_resume|fewer_epochs|packed_and_padded|one_compilation\w*\[(?!packed))"
    r"|training/test_checkpoint.py::test_full_disk"
    r"|serving/test_recommender.py::test_(time_interval_models|generated_sequences)"
    r"|attention/test_stretches.py::\w+\[(?!(softmax|miq))"
    r"|models/test_objectives.py::\w+\[(?!(cross-entropy|bpr-pvn)-(?!stosa|srgnn))"
    r"|tasks/test_training.py::test_(held_out|training_items|streamed|resumed|mesh|fine_tuning|loss_falls)"
    r"|training/test_run_directory.py::test_(other_paths_work|a_second_process|signals|a_run_killed)"
    r"|training/test_initialize.py::test_(interrupted|other_dropout|source_that_trained_on_less|another_encoder\w+\[sections[12])"
    r"|evaluation/test_scoring.py::test_(lists_of_many_ties|the_search_for_new_entrants\w+\[rising|a_mesh_gives\w+\[shape[01345])"
    r"|evaluation/test_processes.py"
    r"|attention/test_padding_keys.py::test_dropout"
    r"|attention/test_tokens.py::test_(tokens_of_both|equal_to_dummies\w+\[(?!post-norm))"
    r"|attention/test_options.py::test_rows_shorter"
    r"|attention/test_figures.py::test_(weights_of_each_layer|files_of_an_encoder)"
    r"|cli/test_refusals.py::test_a_kernel_with_additive"
    r"|models/test_stosa.py::test_scores_rank"
    r"|objectives/test_sharding.py::test_gradient_inside"
    r"|tasks/test_s3rec.py::test_(packing_and_padding|objectives_of_weight_zero)"
    r"|tasks/test_s3rec.py::test_objectives_equal_the_oracle\w+\[(?!\{('form': 'paper')?\}\])"
    r"|test_api.py::test_(metrics_are_means|every_encoder_trains|a_run_on_own_data)"
    r"|training/test_loop.py::test_overwrite"
    r"|training/test_optimizers.py::test_(every_registered|item_tables_are|kernels_are|matrices_that)"
    r"|attention/test_options.py::test_mapping_one_query"
    r"|attention/test_refinement.py::test_(starts_at_the_first_weights\[(?!1.0)|training_can_leave\w+\[(?!simple))"
    r"|training/test_loop.py::test_resumed_run_is\w+\[[123]\]"
    r"|training/test_checkpoint.py::test_(single_flipped|a_damaged)"
    r"|training/test_run_directory.py::test_lost_and_damaged_logs"
    r"|serving/test_recommender.py::test_reported_metrics_are_those_of_the_served_lists"
    r"|models/test_encoders.py::test_mesh_of_eight\w+\[(?!pre-norm)"
    r"|cli/test_commands.py::TestTrain::test_overwrite"
    r"|analysis/test_estimate.py::test_(the_largest|as_a_command|operations_grow|memory_is\w+\[)"
    r"|tasks/test_negatives.py::test_negatives_are_as_popular\w+\[task[01]"
    r"|test_through_time.py::test_a_second_call"
    r"|tuning/test_tune.py::test_oracle_needs"
    r"|interop/test_import.py::test_(an_imported_run_evaluates|a_run_names)"
    r"|serving/test_server.py::test_a_client_that_does_not_read"
    r"|serving/test_generation.py::test_probabilities_are"
    r"|analysis/test_duality.py::test_log_softmax"
    r"|attention/test_options.py::test_(dummies_start|projections_are_initialised)"
    r"|serving/test_bulk.py::test_the_log_may_have_moved"
    r"|tasks/test_consistency.py::test_loss_and_gradient\w+\[none"
    r"|training/test_item_codes.py::test_a_reopened_run"
    r"|analysis/test_commands.py::TestProtocols::test_first_is"
    r"|serving/test_user_requests.py::test_generated_and_explained"
    r"|cli/test_heaps.py::test_the_environment"
    r"|test_runs.py::test_evaluation_reports_the_mesh"
    r"|models/test_similarity.py::test_the_loss_is"
    r"|serving/test_generation.py::test_(times_that_stay|planned_window)"
    r"|cli/test_commands.py::TestTrain::test_(resume_from_the_directory_alone|table_for_people|parts_are_chosen)"
)


def thin_tables(items: list[pytest.Item]) -> None:
    """Mark the further cases of long tables as slow."""
    kinds: set[tuple[str, str]] = set()
    for item in items:
        function, bracket, case = item.nodeid.partition("[")
        if SLOW.search(item.nodeid):
            item.add_marker("slow")
        elif bracket and function.startswith(TABLES):
            kind = (function, re.split(r"[-=(\]]", case, maxsplit=1)[0])
            if kind in kinds:
                item.add_marker("slow")
            kinds.add(kind)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless the command line asks for them."""
    thin_tables(items)
    named = any("::" in argument for argument in config.args)
    if config.getoption("--all") or config.option.markexpr or named:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def key() -> jax.Array:
    """Random key for tests that need any."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def two_seeds(tmp_path_factory):
    """A finished run with the seeds 3 and 1 on `tests.helpers.small_dataset`; a test that changes files takes a copy."""
    import jaxrec
    from tests.helpers import small_config, small_dataset

    config = small_config(training={"epochs": 2, "seeds": (3, 1)})
    with jax.numpy_dtype_promotion("standard"):
        return jaxrec.fit(small_dataset(), config, tmp_path_factory.mktemp("seeds") / "run", progress=False)


@pytest.fixture(scope="module")
def standard_promotion():
    """Standard type promotion, which optax needs (an int32 step count against float32 decay).

    A module asks for it with ``pytestmark = pytest.mark.usefixtures("standard_promotion")``.
    """
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)
