"""Real servers on the loopback: MLflow's tracking server, and PostgreSQL for its store."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A tracking server, which can be killed and started again.

    Args:
        folder: Where it works, and keeps artifacts and its log.
        store_uri: Of its backend store.
        options: More of `mlflow server`, such as ``--app-name mlmeta``.
        environment: More variables.
        prefix: Its ``--static-prefix``.
    """

    def __init__(
        self,
        folder: Path,
        store_uri: str,
        *,
        options: Sequence[str] = ("--workers", "1"),
        environment: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        self.folder = folder
        self.store_uri = store_uri
        self.options = [*options, *(["--static-prefix", prefix] if prefix else [])]
        self.environment = dict(environment or {})
        self.port = find_port()
        self.uri = f"http://127.0.0.1:{self.port}{prefix}"
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", *self.options, "--port", str(self.port)]
        command += ["--backend-store-uri", self.store_uri]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.environment}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert self.process.poll() is None, f"the server did not start: {self.log.read_text()[-2000:]}"
            time.sleep(0.1)

    def ask(
        self,
        path: str,
        document: Any = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Return status and JSON, or text, of an answer; a document is sent as JSON, bytes as they are."""
        body = document if document is None or isinstance(document, bytes) else json.dumps(document).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(f"{self.uri}{path}", data=body, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode("utf-8", "replace")

    def stop(self) -> None:
        """End it as Ctrl-C does, with all that it has started."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.process = None

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian does not put on the path."""
    if program := shutil.which("initdb"):
        return Path(program).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class Postgres:
    """A PostgreSQL server with one empty database, on a port of its own, in a folder that goes with it."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="mlmeta-postgres-"))
        self.port = find_port()
        self.uri = f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"
        # It refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        self._run("initdb", "--username=tester", "--auth=trust", "--encoding=UTF8", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)
