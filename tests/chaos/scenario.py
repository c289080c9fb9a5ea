"""One run, and the faults that strike it."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flq.apps.bundle import pack
from flq.apps.project import load_project
from flq.link import runs
from flq.link.database import Database
from flq.wire.runs import Submission
from tests.chaos import checks
from tests.chaos.checks import Reference
from tests.chaos.faults import Fault, Scene, Strike, carried_out, lay_out, withdraw
from tests.chaos.federation import SECOND_SUPEREXEC, TWIN, Federation
from tests.chaos.observer import PATIENCE, PAUSE, SUPERLINK_BACK, Observer

APP = Path(__file__).with_name("app")
LOOPS = ("strategy", "hand", "query")
SEED = 20_26
RUN_SECONDS = 240.0
"""No run takes longer, however it is disturbed."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A fault that has struck, and how long it took until it was overcome; None if the run had no more need of it."""

    fault: str
    kind: str
    way: str
    kills: int
    seconds: float | None


@dataclass(slots=True)
class Report:
    """A run that was disturbed: what has happened to it, what was not reached, and what does not hold."""

    loop: str
    seconds: float = 0.0
    attempts: int = 0
    occurrences: list[Occurrence] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return sum(occurrence.kills for occurrence in self.occurrences)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "kills": self.kills}


def undisturbed(federation: Federation, loop: str) -> Reference:
    """Let a run go undisturbed. Raises `AssertionError` if it does not complete."""
    observer = Observer(federation.dsn, _submit(federation, loop))
    try:
        _await(lambda: observer.state().finished, RUN_SECONDS)
        assert observer.state().outcome == "completed", observer.state()
        return checks.reference(observer)
    finally:
        observer.close()


def disturbed(
    federation: Federation, loop: str, faults: Sequence[Fault], *, reference: Reference, rng: random.Random
) -> Report:
    """Let faults strike a run, one after the other, and see what it comes to."""
    report, began = Report(loop), time.monotonic()
    for path in federation.orders.iterdir():
        path.unlink()
    early, middle, late = ([fault for fault in faults if fault.when == when] for when in ("start", "middle", "end"))
    scene = Scene(federation, Observer(federation.dsn, 0), rng)
    for fault in (*early, *late):  # what is due at the end may be due sooner: an attempt may end
        lay_out(scene, fault)
    scene.observer.run_id = _submit(federation, loop)
    try:
        for fault in early:
            _strike(scene, fault, report)
        for number, fault in enumerate(sorted(middle, key=lambda fault: fault.takes_long), start=1):
            due = reference.tasks * number // (len(middle) + 1)
            _await(lambda due=due: _has_come_to(scene.observer, due), RUN_SECONDS)  # type: ignore[misc]
            _strike(scene, fault, report)
        for fault in late:
            _strike(scene, fault, report)
        if _await(lambda: scene.observer.state().finished, RUN_SECONDS):
            report.broken = checks.broken(federation, scene.observer, reference)
        else:
            ((waiting,),) = scene.observer.rows("SELECT max(reason) FROM flq.waiting WHERE run_id = %(run_id)s")
            report.broken = [f"the run has not finished within {RUN_SECONDS:.0f} s: {waiting}"]
        report.attempts = scene.observer.state().attempt
    except AssertionError as exc:  # something that a fault waits for has not come
        report.broken.append(f"{exc}")
    finally:
        federation.remove(SECOND_SUPEREXEC)
        federation.remove(TWIN)
        scene.observer.close()
    report.seconds = time.monotonic() - began
    return report


def _strike(scene: Scene, fault: Fault, report: Report) -> None:
    scene.observer.look()
    if fault.strike is None:
        strike = _at_fail_point(scene, fault)
    else:
        strike = None if scene.observer.state().finished else fault.strike(scene)
    if strike is None:
        report.missed.append(fault.name)
        return
    recovered = _await_recovery(scene, fault, strike)
    report.occurrences.append(Occurrence(fault.name, fault.kind, fault.way, strike.kills, recovered))


def _at_fail_point(scene: Scene, fault: Fault) -> Strike | None:
    if fault.when == "middle":
        lay_out(scene, fault)
    give_up = time.monotonic() + PATIENCE
    while True:
        strike = carried_out(scene, fault)
        if strike is not None:
            return strike
        over = scene.observer.state().finished or time.monotonic() > give_up
        if over and withdraw(scene, fault):
            return None
        time.sleep(PAUSE)


def _await_recovery(scene: Scene, fault: Fault, strike: Strike) -> float | None:
    """Seconds from the strike to its recovery; None if the run has finished without."""
    found: list[float] = []

    def recovered() -> bool:
        moment = scene.observer.moment(fault.recovered, at=strike.at)
        if moment is not None:
            found.append(moment)
        needs_run = fault.recovered != SUPERLINK_BACK
        return moment is not None or (needs_run and scene.observer.state().finished)

    _await(recovered, PATIENCE)
    since = strike.back() if strike.back is not None else strike.at
    return max(0.0, found[0] - since) if found and since is not None else None


def _has_come_to(observer: Observer, results: int) -> bool:
    state = observer.state()
    return state.finished or state.results >= results


def _await(condition: Callable[[], object], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(PAUSE)
    return True


def _submit(federation: Federation, loop: str) -> int:
    db = Database(federation.dsn, application="chaos", size=1)
    try:
        return runs.submit(db, _submission(loop))
    finally:
        db.close()


def _submission(loop: str) -> Submission:
    project, bundle = _packed()
    config = {**project, "loop": loop}
    return Submission(
        app="chaos_app", bundle=bundle, config=config, owner="chaos", idempotency_key=uuid.uuid4().hex, seed=SEED
    )


@cache
def _packed() -> tuple[dict[str, Any], bytes]:
    project = load_project(APP)
    return dict(project.config), pack(project).data
