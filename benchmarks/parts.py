"""Runs commands one after another or at once, each with a limit, and keeps what they print: the parts of `make gpu`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

GRACE = 5.0  # seconds between the request to stop and the end


@dataclass(frozen=True)
class Reading:
    """What the output of a part says: lines for the summary, data for the results, and what is wrong, if anything."""

    lines: list[str] = field(default_factory=list)
    data: Any = None
    complaint: str | None = None


def last_lines(output: str) -> Reading:
    return Reading(output.strip().splitlines()[-3:])


@dataclass(frozen=True)
class Part:
    """A command of a call, its limit in seconds, and what must be there for it.

    needs: names that a call's `lack` knows. optional: without them it is skipped, and nothing has failed. beside: it
    runs with the part before it. background: it runs beside all parts. service: it ends with the call.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    needs: tuple[str, ...] = ()
    read: Callable[[str], Reading] = last_lines
    optional: bool = False
    beside: bool = False
    background: bool = False
    service: bool = False


def longest(parts: Sequence[Part]) -> float:
    """Returns the seconds that a call takes where every part takes its limit: of those side by side the longest."""
    stages = stages_of(parts)
    return sum(max(part.limit for part in stage) for stage in stages)


def stages_of(parts: Sequence[Part]) -> list[list[Part]]:
    stages: list[list[Part]] = []
    for part in parts:
        if part.background or part.service:
            continue
        if part.beside and stages:
            stages[-1].append(part)
        else:
            stages.append([part])
    return stages


class Running:
    """A part in a process group of its own, its output in a file."""

    def __init__(self, part: Part, limit: float, environment: dict[str, str]) -> None:
        self.part, self.limit, self.begin = part, limit, time.monotonic()
        self.stop_asked: float | None = None
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.process: subprocess.Popen[bytes] | None = None
        try:
            # A group, not a session: what ends the whole call from outside still finds it.
            self.process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=os.setpgrp,
            )
        except OSError as error:
            self.output.write(f"{error}\n".encode())

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def ended(self) -> bool:
        """Tells whether the command has ended; one over its limit is asked to, then killed with its children."""
        if self.process is None or self.process.poll() is not None:
            self.kill()  # what it left behind
            return True
        if self.stop_asked is None and self.seconds() > self.limit:
            self.stop_asked = time.monotonic()
            self.process.send_signal(signal.SIGINT)  # pytest then says what it has
        elif self.stop_asked is not None and time.monotonic() > self.stop_asked + GRACE:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def text(self) -> str:
        """Returns all output, once."""
        with self.output as output:
            output.seek(0)
            return output.read().decode(errors="replace")


class Call:
    """One call: its parts in order, and after each of them the results on disk.

    lack(need): None where it is there, "wait" while it is being made, else why it is not there. A part that waits lets
    those after it go first.
    """

    def __init__(self, name: str, folder: Path, total: float, lack: Callable[[str], str | None]) -> None:
        self.total, self.lack = total, lack
        self.file, self.log = folder / f"{name}.json", folder / f"{name}.log"
        self.begin = time.monotonic()
        self.results: dict[str, Any] = {"call": name, "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "parts": []}
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.alive: list[Running] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        self.write()

    def left(self) -> float:
        return self.total - (time.monotonic() - self.begin)

    def write(self) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1))
        part.replace(self.file)

    def record(self, part: Part, status: str, output: str | None = None, **figures: float | None) -> None:
        """Puts a part's end on disk, and a line of it on the screen."""
        try:
            reading = Reading() if output is None else part.read(output)
        except Exception as error:  # an output that nobody has seen yet must not stop the call
            reading = Reading(last_lines(output or "").lines, complaint=f"its output cannot be read: {error!r}")
        if status == "passed" and reading.complaint:
            status = f"failed: {reading.complaint}"
        fine = status == "passed" or (part.optional and status.startswith("skipped"))
        entry = {"part": part.name, "status": status, "fine": fine, "limit": part.limit, **figures}
        self.results["parts"].append({**entry, "lines": reading.lines, "data": reading.data})
        with self.log.open("a") as log:
            log.write(f"\n==== {part.name}: {status}\n==== {shlex.join(part.command)}\n{output or ''}\n")
        self.write()
        print(f"{time.monotonic() - self.begin:6.1f} s  {part.name}: {status}", flush=True)

    def start(self, part: Part) -> Running | None:
        """Starts a part, or records why it cannot."""
        missing = next((lack for need in part.needs if (lack := self.lack(need)) is not None), None)
        limit = min(part.limit, self.left() - GRACE) if not part.service else self.total
        if missing is not None or limit < 1:
            self.record(part, f"skipped: {missing or 'no time left'}")
            return None
        running = Running(part, limit, self.environment)
        self.alive.append(running)
        return running

    def finish(self, running: Running) -> None:
        self.alive.remove(running)
        code = running.process.returncode if running.process else 127
        over = running.stop_asked is not None
        status = f"over its limit of {running.limit:.0f} s" if over else "passed" if code == 0 else f"failed ({code})"
        if running.part.service:
            status = "passed"
        began = running.begin - self.begin
        self.record(running.part, status, running.text(), began=round(began, 2), seconds=round(running.seconds(), 2))

    def tick(self) -> None:
        for running in [r for r in self.alive if r.ended()]:
            self.finish(running)
        time.sleep(0.05)

    def waits(self, part: Part) -> bool:
        return self.left() > GRACE + 1 and any(self.lack(need) == "wait" for need in part.needs)

    def run(self, parts: Sequence[Part]) -> bool:
        """Runs the parts, and tells whether none failed."""
        try:
            for part in parts:
                if part.background or part.service:
                    self.start(part)
            stages = stages_of(parts)
            while stages:
                stage = next((s for s in stages if not all(self.waits(part) for part in s)), None)
                if stage is None:
                    self.tick()
                    continue
                now = [part for part in stage if not self.waits(part)]
                stage[:] = [part for part in stage if part not in now]
                stages = [s for s in stages if s]
                batch = [running for part in now if (running := self.start(part))]
                while any(running in self.alive for running in batch):
                    self.tick()
            while any(not running.part.service for running in self.alive):
                self.tick()
        except KeyboardInterrupt:
            self.results["interrupted"] = True
        finally:
            for running in list(self.alive):
                running.kill()
                self.finish(running)
        return not self.results.get("interrupted") and all(entry["fine"] for entry in self.results["parts"])

    def summary(self) -> str:
        """Returns the parts with their seconds, limits and lines, in at most about 90 lines."""
        lines = [f"{'part':46} {'seconds':>8} {'limit':>6}  status"]
        for entry in self.results["parts"]:
            seconds = f"{entry['seconds']:.1f}" if "seconds" in entry else "-"
            lines.append(f"{entry['part'][:46]:46} {seconds:>8} {entry['limit']:>6.0f}  {entry['status']}")
        for entry in self.results["parts"]:
            shown = entry["lines"][:25]
            lines += [f"-- {entry['part']}", *(f"   {line[:150]}" for line in shown)] if shown else []
        return "\n".join(lines)
