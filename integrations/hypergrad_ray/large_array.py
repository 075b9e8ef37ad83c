"""`LargeArray`: an ndarray that Ray's logs show in one line."""

from typing import Any

import numpy as np

LARGE = 1000  # numpy shows arrays with more elements than this in short


class LargeArray(np.ndarray):
    """An ndarray in every respect, but that Ray logs it as text such as `[0.1 0.2 ... 0.9]`.

    Ray writes each number of an ndarray itself into `params.json` and `result.json`, which takes seconds for a million.
    What is computed from a large array is a plain ndarray.
    """

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)


def in_short(value: Any) -> Any:
    """Return a value, in which an array is a `LargeArray` where it is large."""
    if isinstance(value, np.ndarray) and value.size > LARGE:
        return value.view(LargeArray)
    return value
