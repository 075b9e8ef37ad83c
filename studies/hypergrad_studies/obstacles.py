"""Why a rival cannot run on a task here, in one line that says what to do instead."""

import importlib.util

from hypergrad_search import TrainingProblem
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.space import dimension, floats
from hypergrad_studies.problems import middle
from hypergrad_studies.rivals import EXTRAS, Rival
from hypergrad_studies.spending import GRADIENT_EVALUATIONS, Budget
from hypergrad_studies.tasks import ObjectiveTask, Task, TrainableTask, TrainingTask


def obstacle(rival: Rival, task: Task, backend: str, budget: Budget) -> str | None:
    """Return why a rival cannot run on a task in a host; None where it can."""
    if not rival.runs_in(backend):
        return f"{rival.name} does not run in {backend}; leave it out, or choose another --backend"
    if rival.needs is not None and importlib.util.find_spec(rival.needs) is None:
        return f"{rival.name} needs {rival.needs}: pip install 'hypergrad-search[{EXTRAS[rival.needs]}]'"
    if rival.counts and budget.unit != GRADIENT_EVALUATIONS:
        return f"{rival.name} needs a budget in {GRADIENT_EVALUATIONS}; leave it out"
    if isinstance(task, TrainingTask):
        return _of_training(rival, task, backend)
    return _of_others(rival, task, backend)


def _of_others(rival: Rival, task: ObjectiveTask | TrainableTask, backend: str) -> str | None:
    own = "optuna" if isinstance(task, ObjectiveTask) else "ray"
    if backend != own:
        kind = "an objective of Optuna" if own == "optuna" else "a trainable of Ray Tune"
        return f"{task.name} is {kind}; choose --backend {own}"
    if rival.trains:
        return f"{rival.name} needs a training problem and its space, and {task.name} is none; leave out one of them"
    if rival.lifts is False:
        return f"{rival.name} finds nothing to leave unlifted in {task.name}; leave out one of them"
    return None


def _of_training(rival: Rival, task: TrainingTask, backend: str) -> str | None:
    if backend == "ray" and task.reseed:
        return f"{task.name} needs a new seed each trial; choose --backend optuna"
    if rival.resumes and task.reseed:
        return (
            f"{rival.name} resumes what has a seed, and {task.name} needs a new one each trial; leave out one of them"
        )
    if rival.lifts is False and not task.can_lift:
        return f"{rival.name} finds nothing to leave unlifted in {task.name}; leave out one of them"
    problem, space = task.posed()
    if rival.tied and not any(parameter.shape for parameter in floats(space).values()):
        return f"tied methods find no array in {task.name}; leave out one of them"
    if dimension(rival.searched(space)) < rival.least:
        return f"{rival.name} needs at least {rival.least} numbers, and {task.name} has fewer; leave out one of them"
    if rival.resumes and isinstance(problem, TrainingProblem) and not isinstance(problem.steps, int):
        return f"{rival.name} needs to know the number of steps, which {task.name} searches; leave out one of them"
    if isinstance(problem, FunctionProblem):
        if rival.report_every or rival.optimizer or rival.how is not DEFAULT_METHOD:
            return f"{rival.name} needs a TrainingProblem, and {task.name} is a function; leave out one of them"
        return None
    if rival.optimizer is not None and problem.steps == 1:
        return f"{rival.name} needs more than one training step, and {task.name} has no more; leave out one of them"
    at = middle(space)
    try:
        rival.how.check(problem.at(at), at, space=space)
    except ValueError as refusal:
        return f"on {task.name}, {refusal}"
    return None
