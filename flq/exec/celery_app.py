"""The Celery app of SuperExec: a queue for launches, one for each SuperExec's housekeeping, JSON, no state of its own.

PostgreSQL knows which runs there are; a job is a hint that one of them wants to start. A job that is delivered
twice, late or never does no harm, so jobs are acknowledged early and results are not kept.
"""

from __future__ import annotations

from celery import Celery
from kombu.transport import get_transport_cls

from flq.errors import UsageError

QUEUE = "flq.launch"
LAUNCH = "flq.launch"
"""The job that launches. Its arguments are `run` (the run's name), `run_id` and `attempt`: nothing else."""

HOUSEKEEPING = "flq.housekeeping"
"""The job by which a SuperExec finds out whether it still takes jobs. It has no arguments."""

_YEAR = 365 * 24 * 3600


def create_app(broker: str) -> Celery:
    """Make a Celery app that speaks to `broker`; jobs are added by `jobs.register`.

    Raises `UsageError` if that is no address of a broker. It is not quoted: it may hold a password.
    """
    _insist_on_address(broker)
    app = Celery("flq", broker=broker, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_create_missing_queues=True,
        task_acks_late=False,
        task_track_started=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a job that this SuperExec has no slot for is left to another one
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
        worker_proc_alive_timeout=30,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={
            "visibility_timeout": _YEAR,  # Redis would deliver a job again that it thinks lost: the dispatcher's work
            "socket_connect_timeout": 2,
            "socket_timeout": 2,  # of a broker that is frozen, or that the network has lost
            "health_check_interval": 5,
        },
        enable_utc=True,
    )
    return app


def housekeeping_queue(superexec: str) -> str:
    """The queue of one SuperExec's housekeeping, which is named like its Celery worker."""
    return f"{HOUSEKEEPING}.{superexec}"


def _insist_on_address(broker: str) -> None:
    scheme, separator, _ = broker.partition("://")
    try:
        known = bool(separator and get_transport_cls(scheme.partition("+")[0]))
    except (KeyError, ImportError):
        known = False
    if not known:
        raise UsageError(
            "the federation's broker has no address that Celery understands",
            hint="FLQ_BROKER is like redis://broker.example.org/0, rediss:// with TLS, redis+socket:///run/valkey.sock",
        )
