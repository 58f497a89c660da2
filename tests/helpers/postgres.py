"""A PostgreSQL server of a test's own, in a folder, that can be killed and started again."""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian keeps what is not for users
_IS_ROOT = os.geteuid() == 0  # whom the server refuses to run as


def program(name: str) -> str | None:
    """The path of one of its programs."""
    return shutil.which(name, path=os.pathsep.join([*map(str, _FOLDERS), os.environ.get("PATH", "")]))


def why_not() -> str | None:
    """Why there can be no server here."""
    if program("initdb") is None or program("pg_ctl") is None:
        return "no PostgreSQL server: install Debian's postgresql"
    if _IS_ROOT and subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


def _run(*command: str) -> None:
    found = subprocess.run(
        ["runuser", "-u", "postgres", "--", *command] if _IS_ROOT else command,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Postgres:
    """A server on a port of this machine, its data in a folder."""

    folder: Path
    port: int

    @classmethod
    def new(cls, folder: Path) -> "Postgres":
        """Make a database and start its server."""
        folder.mkdir()
        if _IS_ROOT:
            shutil.chown(folder, "postgres", "postgres")
            for above in folder.parents[:-1]:
                if above != Path("/tmp") and above.stat().st_uid == 0:
                    above.chmod(above.stat().st_mode | 0o011)
        server = cls(folder, free_port())
        _run(str(program("initdb")), "-D", str(folder), "-U", "david", "--auth=trust", "--no-sync", "-E", "UTF8")
        with (folder / "postgresql.conf").open("a") as settings:
            settings.write(f"port = {server.port}\nlisten_addresses = '127.0.0.1'\n")
            settings.write("unix_socket_directories = ''\nfsync = off\nmax_connections = 200\n")
        server.start()
        return server

    @property
    def url(self) -> str:
        """As `--storage` takes it."""
        return f"postgresql://david@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start, and wait until it answers."""
        log = self.folder / "log"
        _run(str(program("pg_ctl")), "-D", str(self.folder), "-l", str(log), "-w", "-t", "60", "start")

    def stop(self) -> None:
        """Cut all connections off, and stop."""
        _run(str(program("pg_ctl")), "-D", str(self.folder), "-m", "immediate", "-w", "stop")

    def restart(self, gone: float) -> None:
        """Stop, as a crash does, and start again after so many seconds."""
        self.stop()
        time.sleep(gone)
        self.start()
