"""The probe: finds out whether a SuperExec still takes jobs, and sees to it that it does again.

A Celery worker can live on, connected and with a heartbeat, and take no job any more: its connection to the broker is
half dead after the broker was away, its queue was cancelled, or its event loop hangs. So a SuperExec sends itself
housekeeping jobs, through the broker, on a queue of its own that the same consumer reads. When it has taken none of
several although the broker has them, it consumes anew, which its ServerApps do not notice. If that does not help, it
ends, and whoever supervises it starts it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from flq.errors import BrokerUnreachable
from flq.link.processes import Consumption
from flq.log import get

log = get(__name__)

INTERVAL_SECONDS = 10.0
"""From one housekeeping job to the next."""

PATIENCE = 3
"""Of how many housekeeping jobs in a row none may be taken. After twice as many the SuperExec ends."""

Tell = Callable[[Consumption], None]
"""Takes how the SuperExec consumes: `Desk.note_consumption`."""


class Probe:
    """Watches one SuperExec. `taken` may be called from any thread.

    Parameters
    ----------
    send
        Sends one housekeeping job. Raises `BrokerUnreachable`.
    is_busy
        Whether all slots are taken: then no job is read from the broker, and nothing can be found out.
    tell
        Takes what was found out, whenever that changes.
    consume_anew
        Has the SuperExec connect to the broker anew; may be called from any thread.
    give_up
        Has the SuperExec end.
    interval
        Seconds from one housekeeping job to the next.

    """

    def __init__(
        self,
        send: Callable[[], None],
        *,
        is_busy: Callable[[], bool],
        tell: Tell,
        consume_anew: Callable[[], None],
        give_up: Callable[[], None],
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._send = send
        self._is_busy = is_busy
        self._tell = tell
        self._consume_anew = consume_anew
        self._give_up = give_up
        self._interval = interval
        self._took = threading.Event()
        self._waits = False  # a housekeeping job was sent, and should have been taken
        self._missed = 0
        self._restarts = 0
        self._gave_up = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="flq-probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, soon: it may be waiting for a broker."""
        self._closed.set()

    def taken(self) -> None:
        """A housekeeping job was taken."""
        self._took.set()

    def step(self) -> None:
        """Send the next housekeeping job, and judge the last one: if the broker takes one, it should be back by now."""
        took = self._took.is_set()
        self._took.clear()
        if took:
            self._judge(0, taken=True)
        elif self._is_busy():
            self._forgive()
            return
        missed = self._waits and not took
        try:
            self._send()
        except BrokerUnreachable as exc:
            log.debug("no housekeeping job was sent: %s", exc)
            self._forgive()
            return
        self._waits = True
        if missed:
            self._judge(self._missed + 1)
            self._act()

    def _forgive(self) -> None:
        self._judge(0)
        self._waits = False

    def _judge(self, missed: int, *, taken: bool = False) -> None:
        if taken or missed != self._missed:
            self._tell(Consumption(taken=taken, missed=missed, restarts=self._restarts))
        self._missed = missed

    def _act(self) -> None:
        if self._missed == PATIENCE:
            log.warning(
                "the last %d housekeeping jobs were not taken, though the broker has them: consuming anew", PATIENCE
            )
            self._restarts += 1
            self._tell(Consumption(taken=False, missed=self._missed, restarts=self._restarts))
            self._consume_anew()
        elif self._missed == 2 * PATIENCE:
            log.error(
                "it takes no jobs from the broker, and consuming anew has not helped: this SuperExec ends;"
                " its runs go on from their last checkpoints once it is started again, or with another one"
            )
            self._gave_up = True
            self._give_up()

    def _work(self) -> None:
        while not self._gave_up and not self._closed.wait(self._interval):
            self.step()
