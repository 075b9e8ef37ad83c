"""Errors of trials: in a form that Ray can pass on, and in one line."""

import copy
import itertools
from collections.abc import Iterable

from ray import cloudpickle
from ray.tune.experiment import Trial

_NOTE_OF_JAX = "For simplicity, JAX has removed its internal frames"


def passable(error: BaseException) -> BaseException:
    """Return an error that Ray can copy and pickle, and so can it the cause.

    It is the error itself where that can be copied and pickled, else a `TypeError` or `ValueError` with the same text,
    notes and traceback. Of an error that cannot be copied, Ray shows only that it could not.
    """
    passed = error if _can_be_copied(error) else _plain(error)
    if error.__cause__ is not None:
        passed.__cause__ = passable(error.__cause__)
    return passed


def reasons(trials: Iterable[Trial]) -> str:
    """Return why trials have no result of use: the last error, and the last message in a result, in one line."""
    errors, messages = [], []
    for trial in trials:
        if error := trial.get_error():
            errors.append(_in_one_line(str(error)))
        if message := (trial.last_result or {}).get("message"):
            messages.append(" ".join(str(message).split()))
    said = [f"the last error is: {error}" for error in errors[-1:]]
    said += [f"the last message is: {message}" for message in messages[-1:]]
    return "; ".join(said) or "look at the trials' errors"


def _can_be_copied(error: BaseException) -> bool:
    try:
        cloudpickle.loads(cloudpickle.dumps(copy.copy(error)))  # type: ignore[no-untyped-call]  # Ray's is not typed
    except Exception:  # an error's own class may fail here in any way
        return False
    return True


def _plain(error: BaseException) -> BaseException:
    kind = TypeError if isinstance(error, TypeError) else ValueError
    plain = kind(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    for note in getattr(error, "__notes__", ()):
        plain.add_note(note)
    return plain


def _in_one_line(trace: str) -> str:
    """Return the first and the last line of what follows the calls in a trace: the error, and its last note."""
    lines = [line for line in trace.splitlines() if line.strip("- ") and not line.startswith(_NOTE_OF_JAX)]
    last_call = max((i for i, line in enumerate(lines) if line.startswith('  File "')), default=-1)
    text = list(itertools.dropwhile(lambda line: last_call >= 0 and line[0].isspace(), lines[last_call + 1 :]))
    return " ... ".join(dict.fromkeys([text[0].strip(), text[-1].strip()])) if text else trace.strip()
