"""What nvidia-smi says of a GPU: its limits once, and its clocks and power while it is measured."""

from __future__ import annotations

import csv
import statistics
import subprocess
import threading
import time
from typing import Any

import torch

LIMITS = {
    "name": "sku",
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.sm": "most_sm_mhz",
    "clocks.max.mem": "most_memory_mhz",
    "power.draw": "power_w",
    "power.limit": "power_cap_w",
    "power.max_limit": "most_power_cap_w",
    "temperature.gpu": "celsius",
    "memory.total": "memory_mib",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
    "pstate": "pstate",
}
MOVING = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def value(text: str) -> float | str | None:
    """Returns a field as a number where it is one, and None where nvidia-smi does not know it."""
    try:
        return float(text)
    except ValueError:
        return None if text.startswith("[") or text == "N/A" else text


def rows(fields: tuple[str, ...], which: list[str]) -> list[list[str]]:
    """Returns the answer of nvidia-smi, a row for each GPU; none where it refuses or is missing."""
    command = ["nvidia-smi", *which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(csv.reader(done.stdout.splitlines(), skipinitialspace=True)) if done.returncode == 0 else []


def ask(fields: tuple[str, ...], device: torch.device) -> dict[str, float | str]:
    """Returns what nvidia-smi says of the GPU that torch calls `device`, without the fields that it does not know."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    found = rows(fields, ["-i", f"GPU-{uuid}"]) or rows(fields, [])
    if len(found) != 1:  # an older nvidia-smi refuses all fields for one that it does not know
        return {} if len(fields) == 1 else {k: v for field in fields for k, v in ask((field,), device).items()}
    values = dict(zip(fields, map(value, found[0]), strict=False))
    return {field: v for field, v in values.items() if v is not None}


def about(device: torch.device) -> dict[str, Any]:
    """Returns what a GPU is, and its limits, clocks and power now."""
    properties = torch.cuda.get_device_properties(device)
    asked = ask(tuple(LIMITS), device)
    return {
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "l2_bytes": properties.L2_cache_size,
        **{name: asked[field] for field, name in LIMITS.items() if field in asked},
    }


class Watch:
    """Reads clocks, power and temperature about once a second, for as long as it is open."""

    def __init__(self, device: torch.device, every: float = 0.7) -> None:
        self.device, self.every = device, every
        self.readings: list[tuple[float, dict[str, float | str]]] = []
        self.ended = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while not self.ended.wait(self.every):
            reading = ask(MOVING, self.device)
            if not reading:  # nvidia-smi is not here
                return
            self.readings.append((time.monotonic(), reading))

    def since(self, start: float) -> dict[str, float]:
        """Returns the median of what was read since a time of `time.monotonic`, with the least and the most."""
        found: dict[str, float] = {}
        for field in MOVING:
            values = [reading.get(field) for at, reading in self.readings if at >= start]
            numbers = [v for v in values if isinstance(v, float)]
            if numbers:
                name = LIMITS[field]
                found |= {name: statistics.median(numbers), f"least_{name}": min(numbers), f"most_{name}": max(numbers)}
        return found

    def close(self) -> None:
        """Ends the reading."""
        self.ended.set()
        self.reader.join()
