"""What a user names on the command line: `package.module:name`, or `path/to/file.py:name`."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ray import cloudpickle


def load(reference: str) -> Any:
    """Return what a reference names.

    Modules are found as Python finds them, and in the present folder. Raises `ValueError` where there is no such
    module, file or name; errors that the module itself raises are raised.
    """
    where, colon, name = reference.rpartition(":")
    if not colon or not where or not name:
        raise ValueError(f"must be module:name or path/to/file.py:name, got {reference!r}")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_module(where)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{where} has no {name!r}; it has {', '.join(_public(module)) or 'no public names'}")
        found = getattr(found, part)
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    name = f"{path.stem}_file"  # so that a file called json.py takes no other module's place
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # as for each name that ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # as for a script, for the modules beside it
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]  # so that workers need no file; Ray has no types here
    return module


def _from_module(name: str) -> ModuleType:
    if "/" in name or name.startswith("."):
        raise ValueError(f"a file is named with its ending, as in file.py:name, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that it imports is missing
        raise ValueError(f"there is no module {name!r}; a file is named with its ending, as in file.py:name") from None


def _public(module: ModuleType) -> list[str]:
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return [name for name in own if not name.startswith("_")]
