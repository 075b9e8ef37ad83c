"""`hyperparameters_of`: the hyperparameters of a trial, ready for `evaluate`, whichever sampler chose them."""

from typing import Any

from hypergrad_optuna import arrays, attributes
from hypergrad_search.hosting import joined
from hypergrad_search.space import coordinates


def hyperparameters_of(trial: attributes.AnyTrial, *, artifact_store: Any | None = None) -> dict[str, Any]:
    """Return the hyperparameters whose loss is a trial's value: numbers, arrays and categoricals, by name.

    Arrays are whole, whichever sampler chose them. Those of a nested space have their paths for names, such as
    `"opt/rate"`. Where the evaluation itself moved the hyperparameters, as with `Hypernet`, the result holds the values
    where it ended.

    Args:
        trial: a finished trial, or one whose objective has been evaluated.
        artifact_store: the store that holds the arrays, if the study's sampler was given one.

    Raises:
        ValueError: the store is needed and missing.

    Example:
        >>> from hypergrad_optuna import hyperparameters_of
        >>> sorted(hyperparameters_of(study.trials[0]))
        ['l2', 'rate']
    """
    attributes.check_trial("hyperparameters_of", trial)
    own = {name: arrays.read(trial, name, artifact_store) for name in arrays.shapes(trial)}
    elements = {key for name, array in own.items() for key in coordinates(name, array.shape)}
    others = {name: value for name, value in trial.params.items() if name not in elements}
    refined = arrays.decode_all(trial.user_attrs.get(attributes.REFINED) or {}, artifact_store)
    return {**joined(others), **own, **refined}
