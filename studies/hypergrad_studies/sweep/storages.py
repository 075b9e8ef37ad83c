"""The storages of Optuna, as the command line names them."""

import functools
import importlib.util
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, PendingRollbackError

HEARTBEAT = 10  # seconds between two signs of life of a trial
GRACE = 3 * HEARTBEAT  # seconds without one after which a trial is taken to be dead
RETRIES = 3  # of the trial of a process that died


PATIENCE = 120.0  # seconds that a database may be away
PAUSE = 0.5  # seconds between two attempts

#: what SQLAlchemy raises where a server cannot be reached, or has gone in the midst of a transaction
_AWAY = OperationalError, InterfaceError, PendingRollbackError


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a database that is called again while the database cannot be reached."""

    @functools.wraps(method)
    def called(storage: RDBStorage, *arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        while True:
            try:
                return method(storage, *arguments, **named)
            except StorageInternalError as error:
                if not isinstance(error.__cause__, _AWAY) or time.monotonic() - began > PATIENCE:
                    raise
            storage.remove_session()  # it may have kept a connection that is lost
            time.sleep(PAUSE)

    return called


class PatientStorage(RDBStorage):
    """A database that may be away for up to two minutes, as a server that is started again; then errors are raised."""


#: what Optuna's cache calls of a database beside the methods of all storages
_CACHED = "_create_new_trial", "_get_best_trial_id", "_get_stale_trial_ids", "_get_trials", "_set_trial_param"

for _name in (*BaseStorage.__abstractmethods__, "record_heartbeat", *_CACHED):
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def open_storage(name: str) -> BaseStorage:
    """Return the storage of a name.

    It is a URL of SQLAlchemy, such as `sqlite:///sweep.db` or `postgresql+psycopg://user@host/database`; or
    `journal:PATH`, a file that may lie on a network drive; or `grpc://HOST:PORT`, a proxy that
    `optuna.storages.run_grpc_proxy_server` runs.

    In a database each running trial gives signs of life. The trial of a process that died is failed, and another one
    takes its hyperparameters over, after half a minute. Raises `ValueError` where the name is none of these.
    """
    kind, colon, rest = name.partition(":")
    if kind == "journal" and rest:
        return JournalStorage(JournalFileBackend(rest))
    if kind == "grpc":
        return _proxy(name)
    if not colon or not rest.startswith("//"):
        raise ValueError(
            "a storage must be a URL such as sqlite:///sweep.db or postgresql+psycopg://user@host/database, "
            f"journal:PATH or grpc://HOST:PORT, got {name!r}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats
        try:
            sqlalchemy.create_engine(name)
        except (ArgumentError, ImportError) as error:
            raise ValueError(f"the storage {name!r} cannot be used: {error}") from None
        return PatientStorage(
            name,
            engine_kwargs={"pool_pre_ping": True},  # so that a server may start again
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )


def _proxy(name: str) -> BaseStorage:
    address = re.fullmatch(r"grpc://(.+):(\d+)", name)
    if address is None:
        raise ValueError(f"a gRPC proxy must be named grpc://HOST:PORT, got {name!r}")
    if importlib.util.find_spec("grpc") is None:
        raise ValueError(f"{name}: Optuna's gRPC proxy needs grpcio and protobuf: pip install grpcio protobuf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return GrpcStorageProxy(host=address[1], port=int(address[2]))
