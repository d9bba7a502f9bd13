"""The state of every plug-in. Those of third parties are imported in another process, each with a time limit.

An import can raise, wait for a network, end the interpreter or crash it; none of that may stop a list of plug-ins, and only
another process can be left behind. The toolkit's own plug-ins are imported here.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ..errors import ConfigError, PluginError
from .discovery import FIRST_PARTY, GROUPS, PluginInfo, discover

TIME_LIMIT = 10.0
"""Seconds that the import of one plug-in may take before it is called slow. What every plug-in needs is imported before."""
TIME_LIMITS = 0.1, 3600.0

START = """
import json, sys
sys.path[:] = json.loads(sys.stdin.readline())
import adanat_toolkit.interfaces
from adanat_toolkit.registry.probe import serve
serve()
"""


def plugin_report(time_limit: float = TIME_LIMIT) -> list[dict[str, Any]]:
    """Every plug-in: ``kind``, ``name``, ``distribution``, ``version``, ``target``, ``status``, ``error`` and, for
    generators, ``variants``. The status is ``ok``, ``broken``, ``slow`` (no answer within ``time_limit`` seconds) or
    ``shadowed``; none of them ever stops the others."""
    if not TIME_LIMITS[0] <= time_limit <= TIME_LIMITS[1]:
        low, high = TIME_LIMITS
        raise ConfigError(f"--timeout {time_limit:g} is not in {low:g} to {high:g} seconds; give another number.")
    plugins = [plugin for kind in GROUPS for plugin in discover(kind)]
    foreign = [plugin for plugin in plugins if plugin.distribution != FIRST_PARTY and not plugin.shadowed]
    states = dict(zip(foreign, probe(foreign, time_limit), strict=True))
    rows = []
    for plugin in plugins:
        state: dict[str, Any] = {"status": "ok", "error": None, "variants": []}
        if plugin.shadowed:
            state |= {"status": "shadowed", "error": "another distribution registered this name and is used instead"}
        else:
            state |= states.get(plugin) or examine(plugin)
        facts = ("kind", "name", "distribution", "version", "target")
        rows.append({name: getattr(plugin, name) for name in facts} | state)
    return rows


def examine(plugin: PluginInfo) -> dict[str, Any]:
    """``status``, ``error`` and ``variants`` of one plug-in, imported in this process."""
    try:
        loaded = plugin.load()
        return {"status": "ok", "variants": list(loaded.variants()) if plugin.kind == "generator" else []}
    except PluginError as error:
        return {"status": "broken", "error": str(error)}
    except Exception as error:  # variants() is the plug-in's own code
        return {"status": "broken", "error": f"{type(error).__name__} in variants(): {error}"}


def probe(plugins: Sequence[PluginInfo], time_limit: float = TIME_LIMIT) -> list[dict[str, Any]]:
    """What :func:`examine` finds, in another process that is replaced when it hangs or dies."""
    states: list[dict[str, Any]] = []
    while len(states) < len(plugins):
        states += _probe_until_it_ends(plugins[len(states) :], time_limit)
    return states


def _probe_until_it_ends(plugins: Sequence[PluginInfo], time_limit: float) -> Iterator[dict[str, Any]]:
    """States of the plug-ins up to the first one that hangs or kills the process, that one included."""
    command = [sys.executable, "-c", START]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(sys.path) + "\n" + json.dumps([vars(plugin) for plugin in plugins]) + "\n")
            process.stdin.close()
            answers: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_forward, args=(process.stdout, answers), daemon=True).start()
            alive = bool(answers.get())  # ready, whatever that takes: torch is imported
            for plugin in plugins:
                where = f"{plugin.kind} {plugin.name!r} of {plugin.distribution} {plugin.version}"
                try:
                    answer = answers.get(timeout=time_limit) if alive else ""
                except queue.Empty:
                    error = f"{where}: no answer in {time_limit:g} s while {plugin.target} was imported"
                    yield {"status": "slow", "error": error}
                    return
                if not answer:
                    code = process.wait()
                    yield {
                        "status": "broken",
                        "error": f"{where} ended the process that imported it (exit code {code})",
                    }
                    return
                yield json.loads(answer)
        finally:
            process.kill()


def _forward(stream: IO[str], answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)
    answers.put("")


def serve() -> None:
    """The other process: reads plug-ins from stdin, writes one line when it is ready and one for each plug-in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what plug-ins print is not an answer
    plugins = [PluginInfo(**facts) for facts in json.loads(sys.stdin.readline())]
    print(json.dumps("ready"), file=answers, flush=True)
    for plugin in plugins:
        print(json.dumps(examine(plugin)), file=answers, flush=True)
    os._exit(0)  # no exit handler of a plug-in is waited for
