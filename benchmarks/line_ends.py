"""Why a rival's line stops before its sweep does, as a run recorded it or as the rules of the benchmarks have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .cases import DENSE, DTYPES, OTHERS, OWN, Case, Group, groups_of
from .rivals import LIMITS, OVER_MEMORY, OVER_TIME, unfit
from .words import in_order, shown

NOT_IN_QUICK, NOT_MEASURED = "not in the quick suite", "not measured in this run"


@dataclass(frozen=True)
class Sweep:
    """A group of cases over one size of a results file.

    axis, symbol: the size, as a column of the rows and as a letter. frame: the rows.
    """

    result: dict[str, Any]
    frame: pd.DataFrame
    group: str
    axis: str
    symbol: str

    @property
    def device(self) -> str:
        """Where it was measured, 'cpu' or 'cuda'."""
        return "cuda" if self.result["machine_info"].get("gpu") else "cpu"

    def planned(self, suite: str) -> Group | None:
        """Returns the group as a suite has it."""
        return next((group for group in groups_of(self.device, suite, None) if group.name == self.group), None)

    @property
    def sizes(self) -> list[int]:
        """The sizes at which HanStack was measured."""
        return sorted({int(size) for size in self.frame.loc[self.frame["rival"] == OWN, self.axis]})

    def case_at(self, size: int) -> Case:
        """Returns the case of a size."""
        row = self.frame[(self.frame["rival"] == OWN) & (self.frame[self.axis] == size)].iloc[0]
        return Case(int(row["rows"]), int(row["features"]), int(row["layers"]), DTYPES[row["dtype"]])

    def why_not(self, rival: str, size: int) -> str:
        """Returns why a rival is missing at a size."""
        case = self.case_at(size)
        recorded = self.result.get("left_out", {}).get(f"{self.group}: {case}, {rival}")
        if recorded:
            return str(recorded)
        if why := unfit(rival, case, self.device):
            return why
        plans = [self.planned(suite) for suite in ("quick", "full")]
        in_quick, in_full = (plan is not None and rival in plan.rivals for plan in plans)
        is_quick = self.result["machine_info"].get("suite") == "quick"
        return NOT_IN_QUICK if is_quick and in_full and not in_quick else NOT_MEASURED

    def end(self, rival: str, measured: Sequence[int]) -> str:
        """Returns why a rival's line ends at the last of its sizes, '' where that is the sweep's end."""
        beyond = [size for size in self.sizes if size > max(measured)]
        return self.why_not(rival, beyond[0]) if beyond else ""

    def ends(self) -> list[str]:
        """Returns a sentence for each reason why lines begin late or end early."""
        ends: dict[str, list[str]] = {}
        for rival in in_order(set(self.frame["rival"])):
            there = sorted({int(size) for size in self.frame.loc[self.frame["rival"] == rival, self.axis]})
            before = [size for size in self.sizes if size < there[0]]
            if before:
                ends.setdefault(self.why_not(rival, before[-1]), []).append(
                    f"{shown(rival)} at {self.symbol} = {before[-1]:,}"
                )
            if why := self.end(rival, there):
                ends.setdefault(why + _limit(why, rival, self.device), []).append(
                    f"{shown(rival)} beyond {self.symbol} = {there[-1]:,}"
                )
        return [f"{_begun(why)}: {', '.join(lines)}." for why, lines in ends.items()]

    def missing(self) -> list[str]:
        """Returns sentences of the rivals of the full suite that have no line."""
        # Nothing is said of a HanStack on another backend: the preferred one is not measured twice.
        plan = self.planned("full")
        names = [n for n in plan.rivals if n not in set(self.frame["rival"]) | set(OTHERS)] if plan else []
        by_reason: dict[str, list[str]] = {}
        for name in in_order(names):
            by_reason.setdefault(self.why_not(name, self.sizes[0]), []).append(shown(name))
        return [f"{_begun(why)}: {', '.join(found)}." for why, found in by_reason.items()]

    def last(self) -> list[str]:
        """Returns a sentence where the full suite goes on."""
        plan = self.planned("full")
        last = max((getattr(case, self.axis) for case in plan.cases), default=0) if plan else 0
        here = f"{self.symbol} = {self.sizes[-1]:,}"
        is_quick = self.result["machine_info"].get("suite") == "quick"
        return (
            [f"The quick suite ends at {here}, the full one at {last:,}."] if is_quick and last > self.sizes[-1] else []
        )


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _limit(why: str, rival: str, device: str) -> str:
    """Returns how much a rival may take, after the words that it would take more."""
    most = LIMITS[device]
    dense = f" of {most.multiply_adds / 1e9:,.0f} G multiply-adds forward"
    over_time = dense if rival in DENSE else f" of {most.element_layers / 1e6:,.0f} M elements × layers"
    return {OVER_TIME: over_time, OVER_MEMORY: f" of {most.weights / 1e9:,.0f} GB of weights"}.get(why, "")
