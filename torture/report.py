"""What a torture did and found: faults, calls and checks with their counts, and each violation."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from torture.stack import StoreKind

_STORES: dict[StoreKind, str] = {
    "one": "one server",
    "replicas": "a primary with two replicas",
    "cluster": "a cluster of three primaries with a replica each",
}
# So many violations of each check are printed; a fault of the software gives one a second.
SHOWN = 10


@dataclass(slots=True)
class Report:
    """`kind`: of the store; `calls`: by kind and outcome (`ok`, `refused`, `lost`);
    `violations`: when, by the `clock` since `began`, the check, and what was found.
    """

    seed: int
    kind: StoreKind = "one"
    began: float = field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    faults: Counter[str] = field(default_factory=Counter)
    calls: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    checks: Counter[str] = field(default_factory=Counter)
    unjudged: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[float, str, str]] = field(default_factory=list)

    def called(self, kind: str, status: int) -> None:
        """Count a call."""
        self.calls[kind]["lost" if status == 0 else "ok" if status < 300 else "refused"] += 1

    def checked(self, check: str, count: int = 1) -> None:
        """Count what was checked."""
        self.checks[check] += count

    def violated(self, check: str, what: str) -> None:
        """Note what must not be."""
        self.violations.append((self.clock() - self.began, check, what))

    def lines(self) -> list[str]:
        """Return all as Markdown."""
        minutes = (self.clock() - self.began) / 60
        store = _STORES[self.kind]
        rows = [
            f"Seed {self.seed}, {minutes:.1f} minutes, the store is {store}.",
            "",
            "| fault | times |",
            "|---|---:|",
        ]
        rows += [f"| {name} | {count:,} |" for name, count in sorted(self.faults.items())]
        rows += ["", "| call | done | refused | no answer |", "|---|---:|---:|---:|"]
        for kind, of in sorted(self.calls.items()):
            rows.append(f"| {kind} | {of['ok']:,} | {of['refused']:,} | {of['lost']:,} |")
        rows += ["", "| check | times | not to be judged | violations |", "|---|---:|---:|---:|"]
        wrong = Counter(check for _, check, _ in self.violations)
        for check in sorted({*self.checks, *self.unjudged, *wrong}):
            rows.append(f"| {check} | {self.checks[check]:,} | {self.unjudged[check]:,} | {wrong[check]:,} |")
        shown = Counter[str]()
        for at, check, what in self.violations:
            shown[check] += 1
            if shown[check] <= SHOWN:
                rows.append(f"VIOLATION after {at:.1f} s, {check}: {what}")
        if any(count > SHOWN for count in wrong.values()):
            rows.append(f"... {len(self.violations):,} violations in all")
        return rows
