"""What all tests share: a private PostgreSQL server, and a guard for JAX's global precision setting."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# This comes before numpy is imported. Threads that wait for work by spinning slow down the other test processes a lot.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# This comes before JAX is imported. Test processes, and those that tests start, share what they compile.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# This comes before Ray starts. Without an address it would join a cluster that another test process has started, and
# its workers would give way to all other processes, and so hardly run beside other tests.
os.environ.setdefault("RAY_ADDRESS", "local")
os.environ.setdefault("RAY_worker_niceness", "0")


def _server_programs() -> Path:
    """Return the folder of PostgreSQL's server programs, which Debian keeps off the PATH; skip where there is none."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not versions:
        pytest.skip("initdb was not found: `apt-get install postgresql`, or put the folder of initdb on the PATH")
    return max(versions, key=lambda path: float(path.parent.name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL server: its address, without a database name, and what starts it again."""

    address: str
    restart: Callable[[], None]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """Yield a server that lives as long as the test session."""
    programs = _server_programs()
    # PostgreSQL refuses to run as root; the user that takes root's place cannot look into pytest's tmp_path.
    directory = Path(tempfile.mkdtemp(prefix="hypergrad-postgresql-", dir="/tmp"))
    user = None
    if os.getuid() == 0:
        user = "postgres"
        account = pwd.getpwnam(user)
        os.chown(directory, account.pw_uid, account.pw_gid)
    data, log = directory / "data", directory / "log"

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [programs / program, "--pgdata", data, *arguments],
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            server_log = log.read_text() if log.exists() else ""
            pytest.fail(f"{program} {' '.join(arguments)} failed:\n{done.stdout}{server_log}", pytrace=False)

    port = _free_port()
    # The server has no socket file, whose path may be too long, and does not wait for the disk: nothing outlives tests.
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    started = "--wait", "--log", str(log), "--options", options
    try:
        run("initdb", "--username=tests", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "start", *started)
        try:
            yield Server(
                f"postgresql+psycopg://tests@127.0.0.1:{port}",
                lambda: run("pg_ctl", "restart", "--mode=fast", *started),
            )
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(directory)


_database_numbers = count()


@pytest.fixture
def restart_postgresql(postgresql_server: Server) -> Callable[[], None]:
    """Return what stops the server and starts it again."""
    return postgresql_server.restart


@pytest.fixture
def postgresql_url(postgresql_server: Server) -> str:
    """Return the SQLAlchemy URL of an empty PostgreSQL database that no other test sees."""
    import psycopg

    name = f"test_{next(_database_numbers)}"
    address = postgresql_server.address.replace("+psycopg", "")
    with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgresql_server.address}/{name}"


@pytest.fixture
def closed_connections() -> Iterator[None]:
    """Close the connections to databases, since Optuna never does, and Python warns of that."""
    import sqlalchemy  # few tests need it

    opened: list[Any] = []

    def note(connection: Any, record: Any) -> None:
        opened.append(connection)
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous = OFF")  # nothing outlives the tests

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", note)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", note)
    for connection in opened:
        connection.close()


def _double_precision() -> bool:
    """Return JAX's global setting. While no test has imported JAX, it is off, which is the default."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.config.jax_enable_x64)


@pytest.fixture(autouse=True)
def _keep_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the number of threads back, which `hypergrad compare` sets for its process."""
    if "NPROC" in os.environ:
        monkeypatch.setenv("NPROC", os.environ["NPROC"])
    else:
        monkeypatch.setenv("NPROC", "")
        monkeypatch.delenv("NPROC")


@pytest.fixture(autouse=True)
def _keep_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves JAX's 64-bit mode changed, and put it back for the others."""
    before = _double_precision()
    yield
    if _double_precision() != before:
        sys.modules["jax"].config.update("jax_enable_x64", before)
        name = request.node.nodeid
        pytest.fail(f"{name} left jax_enable_x64 changed; use `with jax.enable_x64(...)`", pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Let JAX forget what the tests of a file have compiled; a process has 65,530 memory maps, and dies without one."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator["Cluster"]:
    """Yield two nodes of Ray on one machine, with one CPU each."""
    from ray.cluster_utils import Cluster  # Ray takes seconds to import, and few tests need it

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        nodes: Any = Cluster(initialize_head=True, head_node_args=small)
        nodes.add_node(**small)
    yield nodes
    nodes.shutdown()
