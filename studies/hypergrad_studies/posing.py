"""From what a user has, an object or its name, to the task that a comparison is about."""

from collections.abc import Mapping
from typing import Any

from hypergrad_optuna.distributions import own_space as of_distributions
from hypergrad_ray import param_space
from hypergrad_ray.domains import Domains
from hypergrad_ray.domains import own_space as of_domains
from hypergrad_search import Categorical, Float, Int, TrainingProblem
from hypergrad_search.checks import shown
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.space import check_space
from hypergrad_studies.loading import load
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.tasks import ObjectiveTask, Task, TrainableTask, TrainingTask


def pose(
    problem: Any,
    space: Mapping[str, Any] | None = None,
    *,
    maximise: bool = False,
    metric: str = "loss",
    name: str | None = None,
) -> Task:
    """Return the task of a registered name, a training problem with its space, an objective, or a trainable.

    The space of a training problem may have dicts within it, and domains of Ray or distributions of Optuna; the task
    has it in our terms, with one dict for all names. By default the task's name is that of the registry, or of the
    function. Raises `ValueError` where it is none of these.
    """
    if isinstance(problem, str):
        return named(problem)
    called = name or str(getattr(problem, "__name__", "problem"))
    if isinstance(problem, TrainingProblem | FunctionProblem):
        if space is None:
            raise ValueError(f"{called}: a training problem needs its space, a dict such as {{'rate': Float(0.1, 1)}}")
        if maximise:
            raise ValueError(f"{called}: the value of a training problem is a loss, which is minimised")
        own = of_distributions(called, of_domains(space))
        check_space(own)
        return TrainingTask(called, problem, dict(own))
    if not callable(problem):
        raise ValueError(
            "problem must be a TrainingProblem with its space, an objective of Optuna, a trainable of Ray Tune with "
            f"its space, or the name of a registered problem, got {shown(problem)}"
        )
    if space is None:
        return ObjectiveTask(called, problem, maximise)
    if not isinstance(space, Mapping):
        raise ValueError(f"{called}: space must be a dict of domains, got {shown(space)}")
    domains = _in_domains(space)
    if not Domains.of(domains).space:
        raise ValueError(
            f"{called}: space must hold something to search, such as tune.uniform(0, 1), got {shown(space)}"
        )
    return TrainableTask(called, problem, domains, metric, maximise)


def named(name: str, *, maximise: bool = False, metric: str = "loss") -> Task:
    """Return the task that a name on the command line stands for.

    It is a registered name, or `package.module:make` or `path/to/file.py:make`, where `make()` returns a pair of a
    training problem and its space, an objective of Optuna, or a pair of a trainable of Ray Tune and its space. Raises
    `ValueError` where it is none of these.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]()
    if ":" not in name:
        raise ValueError(
            f"{name!r} is not one of {', '.join(PROBLEMS)}; name one of your own by package.module:make or file.py:make"
        )
    make = load(name)
    if not callable(make):
        raise ValueError(f"{name} must be a function without arguments that returns the problem, got {shown(make)}")
    try:
        made = make()
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # it comes from within
        raise ValueError(
            f"{name} is called without arguments, and must return (problem, space), an objective of Optuna, or "
            f"(trainable, space): {error}"
        ) from None
    problem, space = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if isinstance(problem, str):
        raise ValueError(f"{name} must return (problem, space), an objective, or (trainable, space), got {shown(made)}")
    return pose(problem, space, maximise=maximise, metric=metric, name=name)


def _in_domains(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trainable's space with a domain of Ray in place of each `Float`, `Int` and `Categorical`."""
    ours = {name: value for name, value in space.items() if isinstance(value, Float | Int | Categorical)}
    others = {name: value for name, value in space.items() if name not in ours}
    return {
        **{name: _in_domains(value) if isinstance(value, Mapping) else value for name, value in others.items()},
        **(param_space(ours) if ours else {}),
    }


def backend_of(task: Task) -> str:
    """Return the host in which a task runs, unless the user says otherwise."""
    return "ray" if isinstance(task, TrainableTask) else "optuna"
