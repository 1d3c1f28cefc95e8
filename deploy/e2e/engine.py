"""A Docker engine of its own for the end-to-end test: private data, private networks, gone at the end.

Enters: a folder, and the one with the command's plugins. Leaves: the environment under which the ``docker`` command
reaches that engine alone, so that nothing of an engine that already runs on this machine is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

_NETWORKS = "10.213"  # beside Docker's own 172.17.0.0/16, so that two engines do not answer for one address


class Engine:
    """``dockerd`` with its containerd, below one folder."""

    def __init__(self, folder: Path, plugins: Path) -> None:
        self._folder = folder
        # A socket's path may have 108 bytes; a test's folder may be deeper than that.
        self._run = Path(tempfile.mkdtemp(prefix="tresnet-engine-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TRESNET_", "COMPOSE_"))},
            "DOCKER_HOST": f"unix://{self._run}/docker.sock",
            "DOCKER_CONFIG": str(plugins),
            "DOCKER_BUILDKIT": "0",  # BuildKit asks a registry for every base image, also for one that is here
        }

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _dockerd(),
                    f"--host={self.environment['DOCKER_HOST']}",
                    f"--data-root={self._folder / 'data'}",
                    f"--exec-root={self._run / 'exec'}",
                    f"--pidfile={self._run / 'docker.pid'}",
                    "--bridge=none",  # docker0 may be another engine's
                    f"--default-address-pool=base={_NETWORKS}.0.0/16,size=24",
                    "--live-restore=false",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while self.docker("info", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"dockerd did not start:\n{(self._folder / 'dockerd.log').read_text()[-3000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End every container, then the engine; images stay below the folder for the next run."""
        if self._process is None:
            return
        if containers := self.docker("ps", "--all", "--quiet").stdout.split():
            self.docker("rm", "--force", "--volumes", *containers)
        self.docker("network", "prune", "--force")
        self.docker("volume", "prune", "--force")
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for namespace in (self._run / "exec" / "netns").glob("*"):  # dockerd leaves the last one mounted
            subprocess.run(["umount", str(namespace)], capture_output=True, check=False)
        shutil.rmtree(self._run, ignore_errors=True)

    def docker(
        self, *arguments: object, check: bool = True, timeout_s: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """The ``docker`` command against this engine."""
        done = subprocess.run(
            ["docker", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(map(str, arguments))}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def has_image(self, name: str) -> bool:
        return self.docker("image", "inspect", name, check=False).returncode == 0


def _dockerd() -> str:
    found = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise RuntimeError("no dockerd; `make e2e` installs Debian's docker.io")
    return found
