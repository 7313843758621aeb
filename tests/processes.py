"""Processes that form a process group on this machine, and run functions of the tests together."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 180.0  # after which a run of one function, or a collective in it, counts as hung

# A server imports torch once; the processes are forks of it.
_context = get_context("forkserver")
_context.set_forkserver_preload(["pytest", "hanops.distributed", "torch.distributed.fsdp"])


def _work(rank: int, size: int, store: str, pipe: Connection) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.*")
    warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # what comes uninitialised is NaN
    timeout = timedelta(seconds=SECONDS / 2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    while (call := pipe.recv()) is not None:
        function, arguments = call
        torch.manual_seed(0)
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))  # all are killed then: the others may wait in a collective
    dist.destroy_process_group()


class Processes:
    """`size` processes with one thread each, started by the first call and again by the first one after a failure."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pipes: list[Connection] = []

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._processes = []
        for rank in range(self.size):
            pipe, other = _context.Pipe()
            store = str(Path(self._folder.name) / "store")
            process = _context.Process(target=_work, args=(rank, self.size, store, other), daemon=True)
            process.start()
            other.close()
            self._pipes.append(pipe)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Runs a function of a module in every process and returns their results; the first error fails the call."""
        if not self._pipes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results: dict[int, Any] = {}
        while len(results) < self.size:
            pending = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = wait(pending, SECONDS)
            if not ready:
                self.stop()
                raise TimeoutError(f"{function} hung on ranks {sorted(set(range(self.size)) - set(results))}")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    good, result = pipe.recv()
                except EOFError:
                    good, result = False, "the process died"
                if not good:
                    self.stop()
                    raise AssertionError(f"{function} on rank {rank} of {self.size}: {result}")
                results[rank] = result
        return [results[rank] for rank in range(self.size)]

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes if self._pipes else ():
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        if self._pipes:
            self._folder.cleanup()
        self._pipes = []
