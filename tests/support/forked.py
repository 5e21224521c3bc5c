"""Processes that train, begun with all of training imported: a server imports it once, and forks each of them.

They validate without LPIPS and export weights without a graph, which take more time than the training in a test.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["srgan.commands.train", "srgan.commands.cli"])


def began(function: Callable[..., None], log: Path, *arguments: Any) -> BaseProcess:
    """Begin `function`, of a module below tests/; what it prints goes to `log`."""
    process = _SERVER.Process(target=_alone, args=(function, log, *arguments))
    process.start()
    return process


def ended(processes: Sequence[BaseProcess], log: Path) -> None:
    """Wait for `processes`, which are to end well."""
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes), log.read_text()


def together(function: Callable[..., None], log: Path, *arguments: Any) -> None:
    """Run `function` in two processes that find each other as torchrun's do; its first argument: the rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ended([began(_one_of_two, log, function, rank, port, *arguments) for rank in range(2)], log)


def command(arguments: Sequence[str]) -> None:
    """Be `srgan` with these arguments."""
    from srgan.commands.cli import main

    sys.argv[1:] = arguments
    main()


def _one_of_two(function: Callable[..., None], rank: int, port: str, *arguments: Any) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {key: str(value) for key, value in places.items()}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    function(rank, *arguments)


def _alone(function: Callable[..., None], log: Path, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    without_graphs()
    function(*arguments)


def without_graphs() -> None:
    """Export weights alone, and judge without LPIPS, in this process."""
    from srgan.conversion.exporting import exported, write_files
    from srgan.training import run, validation

    def export(generator: Any, metadata: Any, folder: Path) -> list[Path]:
        return write_files(exported(generator, metadata, ["safetensors"]), folder, metadata.name)

    stand_ins = {(run, "export_generator"): export, (validation, "lpips_available"): lambda: False}
    for (module, name), stand_in in stand_ins.items():
        setattr(module, name, stand_in)
