"""Large arrays in real runs: the state of a run names them, and a run that is restored reads them."""

import hashlib
import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pyarrow.fs import LocalFileSystem
from ray import cloudpickle as untyped
from ray import tune
from ray.tune import ExperimentAnalysis

from hypergrad_ray import HypergradSearch, best_hyperparameters, in_short, large_array, wants_gradient
from hypergrad_ray.large_array import Home, LargeArray, StoredArray
from hypergrad_search import Float, Space

SIZE = 20_000
BYTES = 8 * SIZE  # of one array
SPACE: Space = {"x": Float(-1.0, 1.0, shape=(SIZE,))}

Config = dict[str, Any]
cloudpickle: Any = untyped


def at_home(folder: Path) -> LargeArray:
    array = in_short(np.random.default_rng(0).random(SIZE))
    Home(folder).take({"nested": {"array": array}})
    assert isinstance(array, LargeArray)
    return array


@pytest.fixture(autouse=True)
def _no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no more folders than a process that has just begun."""
    monkeypatch.setattr(large_array, "_places", [])


# without a run


def test_ray_s_pickles_for_files_name_an_array_that_has_a_home(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    array = at_home(first)
    pickles = [cloudpickle.dumps(value) for value in (array, array.copy(), {"x": array})]
    assert all(len(each) < 500 for each in pickles)
    (file,) = first.iterdir()
    assert BYTES < file.stat().st_size < BYTES + 500
    read = cloudpickle.loads(pickles[0])
    assert type(read) is StoredArray
    assert np.asarray(read).tobytes() == array.tobytes()
    assert (2 * read - 1).tobytes() == (2 * np.asarray(array) - 1).tobytes()
    first.rename(second)
    with pytest.raises(FileNotFoundError, match=r"is in none of the folders \['.*first'\]; restore its run by"):
        np.asarray(read)
    assert np.asarray(cloudpickle.loads(cloudpickle.dumps(array))).tobytes() == array.tobytes()  # whole, without a home
    large_array.read_from(LocalFileSystem(), str(second))
    assert np.asarray(read).tobytes() == array.tobytes()
    assert np.asarray(read, np.float32).dtype == np.float32
    assert cloudpickle.loads(cloudpickle.dumps(read)) == read


def test_a_file_is_named_by_its_content(tmp_path: Path) -> None:
    array = at_home(tmp_path)
    before = cloudpickle.dumps(array)
    array[0] += 1.0
    assert cloudpickle.dumps(array) != before
    assert len(list(tmp_path.iterdir())) == 2


def test_all_other_pickles_hold_the_array_itself(tmp_path: Path) -> None:
    array = at_home(tmp_path)
    homeless = in_short(np.asarray(array))
    for content in (pickle.dumps(array), pickle.dumps(array, protocol=5), cloudpickle.dumps(homeless)):
        read = pickle.loads(content)
        assert type(read) is LargeArray
        assert read.tobytes() == array.tobytes()
    assert list(tmp_path.iterdir()) == []


def test_a_searcher_s_own_state_holds_the_arrays_themselves(tmp_path: Path) -> None:
    searcher = HypergradSearch(SPACE, metric="loss", mode="min", seed=0)
    config = searcher.suggest("a")
    assert config is not None
    searcher.save(str(tmp_path / "mine"))
    assert config["x"].home.folder is None
    searcher.save_to_dir(str(tmp_path))
    assert config["x"].home.folder == tmp_path
    result = {"loss": 1.0, "config/x": config["x"], "gradient/x": in_short(np.ones(SIZE))}
    searcher.on_trial_complete("a", result)
    assert result["gradient/x"].home.folder == tmp_path
    searcher.save_to_dir(str(tmp_path))
    (state,) = tmp_path.glob("searcher-state*")
    assert state.stat().st_size > BYTES
    assert b"StoredArray" not in state.read_bytes()
    searcher.set_search_properties(None, None, {})  # another run begins
    assert searcher.suggest("b")["x"].home.folder is None


# in a run


@pytest.fixture(scope="module")
def _small_ray() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def bowl(folder: Path) -> Callable[[Config], None]:
    """Return a trainable that notes what it got, and from the fifth trial on fails until a file is there."""

    def train(config: Config) -> None:
        x = config["x"]
        noted = {"digest": hashlib.sha256(np.asarray(x).tobytes()).hexdigest(), "array": isinstance(x, np.ndarray)}
        with (folder / "noted").open("a") as file:
            file.write(json.dumps(noted) + "\n")
        offset = x - 0.25
        loss = float(offset @ offset)
        if len(notes(folder)) > 4 and not (folder / "healed").exists():
            raise RuntimeError("broken")
        gradient = in_short({"x": 2 * offset}) if wants_gradient(config, loss) else None
        tune.report({"loss": loss, "gradient": gradient})

    return train


def notes(folder: Path) -> list[Config]:
    return [json.loads(line) for line in (folder / "noted").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ray")
def test_the_state_of_a_run_is_small_and_a_run_that_was_moved_is_restored_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: Any = tune.Tuner(
        bowl(tmp_path),
        tune_config=tune.TuneConfig(
            search_alg=HypergradSearch(SPACE, metric="loss", mode="min", seed=0),
            metric="loss",
            mode="min",
            num_samples=8,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(tmp_path / "here"), verbose=0),
    ).fit()
    assert results.num_errors == 4
    run = tmp_path / "here" / "run"
    sizes = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    arrays = {path for path in sizes if path.name.startswith("array-")}
    assert 0 < len(arrays) <= 16
    searchers = {path for path in sizes if path.name.startswith("searcher-state")}
    assert sum(sizes[path] for path in sizes.keys() - arrays - searchers) < BYTES
    best = best_hyperparameters(results, SPACE)["x"]
    failed = {digest(result.config["x"]) for result in results if result.error}

    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(large_array, "_places", [])
    analysis = ExperimentAnalysis(str(tmp_path / "there" / "run"), default_metric="loss", default_mode="min")
    assert all(type(trial.config["x"]) is StoredArray for trial in analysis.trials)
    assert best_hyperparameters(analysis, SPACE)["x"].tobytes() == best.tobytes()

    monkeypatch.setattr(large_array, "_places", [])
    (tmp_path / "healed").touch()
    (tmp_path / "noted").unlink()
    restored: Any = tune.Tuner.restore(str(tmp_path / "there" / "run"), bowl(tmp_path), resume_errored=True).fit()
    assert restored.num_errors == 0
    again = notes(tmp_path)
    assert {note["digest"] for note in again} == failed
    assert all(note["array"] for note in again)
    assert {digest(r.config["x"]) for r in restored} == {digest(r.config["x"]) for r in results}


def digest(array: Any) -> str:
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
