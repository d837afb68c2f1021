"""A real PostgreSQL server for tests, in a folder of its own, ended with them."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import needs

_USER = "nobody"  # the server refuses to run as root


@contextmanager
def cluster() -> Iterator[str]:
    """Run a new, empty server until the block ends; give the address of a database that is not there yet."""
    programs = needs.postgresql()
    # Not below pytest's own folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="refit-postgres-"))
    as_root = os.geteuid() == 0
    if as_root:
        shutil.chown(folder, _USER)
    port = _free_port()

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [programs / program, "-D", folder / "data", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            user=_USER if as_root else None,
        )

    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    try:
        run("initdb", "-U", "refit", "-A", "trust", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", str(folder / "log.txt"), "-o", options)
        try:
            yield f"postgresql://refit@127.0.0.1:{port}/refit"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
