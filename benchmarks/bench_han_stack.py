"""HanStack against what it replaces: over depth, width and batch, in the paper's small networks, in training steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection

import pytest
import torch

from hanops import backends
from tests import emulation

from .cases import COPY, DEEP, EAGER, GRAPH, OTHERS, OWN, Case, Group
from .ceilings import Ceilings
from .interleave import Replay
from .measure import Timed, peaks_on_cpu, saved_bytes, time_case
from .ratios import Samples, ratio_figures
from .rivals import OUT_OF_MEMORY, build, unfit

pytestmark = pytest.mark.benchmark(timer=Replay.clock)

MEMORY = (OWN, DEEP, EAGER)  # whose memory over depth is measured


def preferred(case: Case, device: torch.device) -> str:
    """Returns the backend that runs a case."""
    return backends.select(device, case.dtype, case.features, case.layers, case.elements // case.features)


def rivals_of(names: Collection[str], case: Case, device: torch.device, rehearsal: bool) -> dict[str, str | None]:
    """Returns those of the rivals that fit a case, and for each the backend that it asks for."""
    if rehearsal and f"{OWN}, cuda" in names and emulation.available():
        emulation.load()
    here: dict[str, str | None] = {}
    for name in names:
        backend = name.removeprefix(f"{OWN}, ") if name in OTHERS else None
        elsewhere = backend is not None and (backends.missing(backend) or backend == preferred(case, device))
        if unfit(name, case, device.type) is None and not elsewhere:
            here[name] = backend
    return here


def figures(case: Case, name: str, way: str, samples: Samples, ceilings: Ceilings, device: str) -> dict[str, object]:
    """Returns what a row says beside its times."""
    direction = way.removesuffix(GRAPH)
    seconds = statistics.median(samples[f"{name}, {way}"])
    found: dict[str, object] = {}
    if name == OWN:
        found["backend"] = preferred(case, torch.device(device))
    own = samples.get(f"{OWN}, {way}")
    if own is not None and name != OWN:
        found |= ratio_figures("ratio", samples[f"{name}, {way}"], own)
    if name == COPY:
        found["bytes_moved"] = case.bytes_moved("forward")
        found["bytes_per_s"] = case.bytes_moved("forward") / seconds
    elif name.startswith(OWN):
        moved = case.bytes_moved(direction)
        found |= {"bytes_moved": moved, "bytes_per_s": moved / seconds}
        found["element_layers_per_s"] = case.element_layers / seconds
        found |= ceilings.shares(device, direction, case, seconds)
        if f"{COPY}, forward" in samples:
            copy = samples[f"{COPY}, forward{way.removeprefix(direction)}"]
            found |= ratio_figures("copies", samples[f"{name}, {way}"], copy)
    return found


@pytest.fixture(scope="session")
def peaks(timed: Callable[..., dict[str, list[int]]]) -> Callable[[Group, str], list[int]]:
    """Returns the peaks of memory of a rival over a group's cases, measured when first asked for."""

    def measured(group: Group, name: str) -> list[int]:
        return timed(f"memory {name}", lambda: peaks_on_cpu(name, list(group.cases)))

    return measured


def test_group(timed, report, ceilings, peaks, selected, device, rehearsal, group, case, rival, way):
    def measure() -> Timed:
        names, ways = selected(group, case)
        return time_case(case, rivals_of(names, case, device, rehearsal), ways, device, group.seconds, rehearsal)

    name = f"{group.name}: {case}"
    found = timed(name, measure)
    row = f"{rival}, {way}"
    if row not in found.samples:
        if rival in found.failed:
            is_full = "out of memory" in found.failed[rival].lower() or "OutOfMemory" in found.failed[rival]
            timed.left_out(f"{name}, {rival}", OUT_OF_MEMORY if is_full else "it failed")
            pytest.fail(found.failed[rival], pytrace=False)
        why = unfit(rival, case, device.type)
        if why is not None:
            timed.left_out(f"{name}, {rival}", why)
        pytest.skip(why or "not here")
    info = figures(case, rival, way, found.samples, ceilings, device.type)
    if row in found.peaks:
        info["peak_bytes"] = found.peaks[row]
    if rival in MEMORY and way == "both" and group.name in ("depth", "stack", "small networks"):
        info["saved_bytes"] = saved_bytes(build(rival, case, device), case.input(device=device))
        info["saved_least"] = case.elements * case.dtype.itemsize + case.bits + case.rest
        if device.type == "cpu" and group.name == "depth" and not rehearsal:
            info["peak_bytes"] = peaks(group, rival)[group.cases.index(case)]
    report(
        f"{group.name}: {case}, {way}",
        found.samples[row],
        kind="group",
        group=group.name,
        case=str(case),
        rival=rival,
        way=way,
        rows=case.rows,
        features=case.features,
        layers=case.layers,
        dtype=case.dtype_name,
        device=device.type,
        **timed.about[name],
        **info,
    )
