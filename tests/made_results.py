"""Results files as the benchmarks write them, of times that follow known laws: for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import COPY, DEEP, EAGER, LINEAR, OWN, Case, gpu_groups

Result = dict[str, Any]


def results(gpu: bool) -> dict:
    """A results file as the benchmarks write it, of times that follow known laws."""
    benchmarks = []

    def add(group, rival, way, case, seconds, **info):
        moved, own = case.bytes_moved(way), rival.startswith(OWN)
        info |= {
            "bytes_moved": moved,
            "bytes_per_s": moved / seconds,
            "element_layers_per_s": 1e9,
            "backend": "cuda" if gpu else "cpu",
        }
        if own:
            info |= {"share_of_copy": 0.3, "share_of_instructions": 0.5, "bound_by": "instructions"}
        if own and gpu:
            info |= {"copies": 1.06 * moved / case.bytes_moved("forward"), "copies_noise": 0.02}
        info |= {"kind": "group", "group": group, "rival": rival, "way": way, "rows": case.rows, "case": str(case)}
        info |= {"features": case.features, "layers": case.layers, "dtype": case.dtype_name}
        info |= {"device": "cuda" if gpu else "cpu"} | ({} if rival == OWN else {"ratio": 2.0, "ratio_noise": 0.1})
        stats = {"median": seconds, "iqr": 0.1 * seconds, "data": [seconds]}
        name = f"test_group[{group}: {case}, {way}, {rival}]"
        benchmarks.append({"extra_info": info, "stats": stats, "group": group, "fullname": name})

    owns = (OWN, f"{OWN}, triton") if gpu else (OWN,)
    small = [name for name in gpu_groups(True)[2].rivals if name != COPY] if gpu else [OWN, LINEAR, EAGER]
    for way, factor in (("forward", 1e-9), ("both", 3e-9)):
        for n in (1, 4, 16, 64, 256):
            for rival, cost in ((OWN, 1.0), (DEEP, 20.0), (EAGER, 9.0)):
                kept = 4 * 2**20 + n * 2**17
                memory = {"saved_bytes": kept, "saved_least": kept, "peak_bytes": n * 10**6} if way == "both" else {}
                add("depth", rival, way, Case(4096, 256, n), cost * factor * 2**20 * n, **memory)
            add("batch", OWN, way, Case(4096 * n, 256, 16), factor * 2**24 * n)
            for own in owns:
                cost = 1.0 + 0.3 * owns.index(own)
                add("width", own, way, Case(2**20 // n if gpu else 1024, 64 * n, 16), cost * factor * 2**20 * n)
            add("width", LINEAR, way, Case(2**20 // n if gpu else 1024, 64 * n, 16), factor * 2**20 * n * n / 9)
        for case in (Case(100, 30, 20), Case(256, 784, 20)):
            for i, name in enumerate(small):
                add("small networks", name, way, case, 1e-4 * (1 + i) * case.features / 30)
        for features in (256, 1024, 4096) if gpu else ():
            for case in (Case(2**26 // features, features, 1, t) for t in (torch.float32, torch.bfloat16)):
                if way == "forward":
                    add("one layer", COPY, way, case, case.bytes_moved(way) / 3.2e12)
                for own in owns:
                    add("one layer", own, way, case, case.bytes_moved(way) / 3e12)
    machine = {"cpu": {"brand_raw": "a processor"}, "threads": 2, "hanops": "0", "torch": "2"}
    machine |= {"ceilings": {"copy_bytes_per_s": 1e10, "operations_per_s": 1e11}}
    if gpu:
        machine |= {"gpu": "NVIDIA H100", "sm_mhz": 345.0, "most_sm_mhz": 1980.0, "power_cap_w": 700.0, "cuda": "13.0"}
        machine |= {"clocks": {"sm_mhz": 1755.0, "memory_mhz": 2619.0}, "triton": "3.6.0", "driver": "580.1"}
    commit = {"id": "0123456789", "dirty": False}
    return {"machine_info": machine, "commit_info": commit, "datetime": "2026-01-02T03", "benchmarks": benchmarks}


def written(folder: Path, name: str, made: Result) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(made))
    return file
