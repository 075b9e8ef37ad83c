"""Ray for this process: a cluster at an address, or one of this process alone."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import ray

MEMORY = 200 * 2**20  # bytes that objects may take in a cluster of one's own


@contextlib.contextmanager
def cluster(cores: int | None, address: str | None, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Use the cluster at an address, or one of this process alone with so many cores, whatever `RAY_ADDRESS` says.

    `environment` holds variables of the workers' environment. Raises `ValueError` where Ray runs in this process
    already, since that may be another cluster.
    """
    if ray.is_initialized():
        raise ValueError("Ray runs in this process already; call ray.shutdown() first")
    own = {"address": "local", "num_cpus": cores, "include_dashboard": False, "object_store_memory": MEMORY}
    where: dict[str, Any] = own if address is None else {"address": address}
    with contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict(environment or {})},
            **where,
        )
    try:
        yield
    finally:
        ray.shutdown()
