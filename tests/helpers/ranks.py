"""``adanat`` in several processes of one machine, started as torchrun starts them: for tests of what all commands share."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adanat_toolkit.errors import DataError
from adanat_toolkit.interfaces import Context
from adanat_toolkit.runtime import distributed

from .tiny_plugins import Brightness
from .train_process import PRELOADED, SERVER


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


def _rank(arguments: list[str], environment: dict[str, str], name: str) -> None:
    for stream, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(f"{name}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    torch.set_num_threads(1)
    from adanat_cli.main import app

    app(arguments)


def ranks(
    size: int, folder: Path, *arguments: str | Path, interrupt_once: Callable[[], bool] | None = None
) -> list[Ended]:
    """One command in ``size`` processes; all get SIGINT, as by Ctrl-C, once ``interrupt_once`` holds."""
    SERVER.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    names = [folder / f"rank{rank}" for rank in range(size)]
    processes = []
    for rank, name in enumerate(names):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = SERVER.Process(target=_rank, args=([str(a) for a in arguments], environment, str(name)))
        process.start()
        processes.append(process)
    try:
        while interrupt_once is not None and not interrupt_once():
            assert any(p.is_alive() for p in processes), names[0].with_suffix(".stderr").read_text()
            time.sleep(0.01)
        if interrupt_once is not None:
            for process in processes:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGINT)
        for process in processes:
            process.join(120)
        assert not any(p.is_alive() for p in processes), "a process hangs"
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [
        Ended(p.exitcode or 0, *(name.with_suffix(f".{s}").read_text() for s in ("stdout", "stderr")))
        for p, name in zip(processes, names, strict=True)
    ]


class FailsOnRankOne(Brightness):
    """Its second score fails in one process of several."""

    calls = 0

    def score(self, images: Tensor, context: Context) -> Tensor:
        self.calls += 1
        if distributed.rank() == 1 and self.calls == 2:
            raise DataError("the lamp went out; change it.")
        return super().score(images, context)


@pytest.fixture
def failing_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs reward ``fails-on-rank-one`` and generator ``tiny``, also for processes that are started."""
    info = tmp_path / "site" / "failing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(
        "[adanat.generators]\ntiny = tests.helpers.tiny:TinyGenerator\n"
        "[adanat.rewards]\nfails-on-rank-one = tests.helpers.ranks:FailsOnRankOne\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    root = Path(__file__).parents[2]
    paths = [info.parent, root, root / "plugins", root / "cli"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
