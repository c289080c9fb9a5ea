"""A task as its worker does it: load the app once, then message in, reply out.

Every task starts with the generators of `random`, numpy and (if the app has imported it) torch seeded from the run's
seed, the node's name, the message's group and its type. Neither the attempt nor the worker process is part of it, so
that a task that is done again draws the same numbers. Before the app is loaded they are seeded from the run's seed
alone: what a module draws while it is imported is the same on every node.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path

from flq.apps.clientapp import ClientApp
from flq.apps.context import Context
from flq.apps.environments import provide
from flq.apps.generators import seed_task
from flq.apps.loader import app_frames, headline, load_clientapp
from flq.apps.project import load_project
from flq.errors import AppLoadError, DependencyMissing, FlqError, ObjectUnknown
from flq.failpoints import reach
from flq.node import devices
from flq.node.options import shown_size
from flq.node.protocol import Assignment, Done, capped, lacks_room
from flq.node.state_file import StateFile, write_state
from flq.wire.codec import Encoded, decode, encode, metrics, object_sizes
from flq.wire.ids import SUPERLINK_NODE_ID, ObjectHash
from flq.wire.message import ErrorCode, Message, Metadata
from flq.wire.records import RecordDict
from flq.wire.status import ResultStatus


class Refused(Exception):
    """The task ends with an error that stands for its reply."""

    def __init__(self, code: int, text: str, *, no_room: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.no_room = no_room


class Executor:
    """Does the tasks of one run, one after the other. The app is loaded by the first one."""

    def __init__(self) -> None:
        self._app: ClientApp | None = None
        self._load_failure: str | None = None

    def perform(self, task: Assignment, manifest: bytes) -> tuple[Done, bytes]:
        """Do a task. Whatever the app does short of ending the process, there is an answer."""
        started = time.time()
        try:
            reply, staged = self._reply(task, manifest)
            objects, written = _write_objects(task, manifest, reply)
        except Refused as exc:
            return _failed(task, started, exc), b""
        done = Done(
            number=task.number,
            status=ResultStatus.OK,
            started_at=started,
            ended_at=time.time(),
            objects=objects,
            written=written,
            metrics=reply.metrics,
            staged=staged,
        )
        return done, reply.encoded.manifest

    def _reply(self, task: Assignment, manifest: bytes) -> tuple[_Reply, bool]:
        app = self._loaded(task)
        with contextlib.ExitStack() as stack:
            base = _open_state(stack, task)
            context = Context(
                run_id=task.run_id,
                node_id=task.node_id,
                node_config=dict(task.node_config),
                state=RecordDict() if base is None else base.read(),
                run_config=dict(task.run_config),
                attempt=task.attempt,
            )
            message = _message(task, manifest)
            seed_task(task.seed, task.node_name, task.group, task.kind)
            reach("clientapp.before-handler")
            content = self._answer(app, task, message, context)
            reply = _Reply(content)
            staged = _stage(task, base, context.state)
            reach("clientapp.state-staged")
            return reply, staged

    def _answer(self, app: ClientApp, task: Assignment, message: Message, context: Context) -> RecordDict:
        try:
            reply = app(message, context)
        except BaseException as exc:  # noqa: BLE001 - sys.exit() in a handler is an error of the app's, too
            raise Refused(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, _told(exc, task)) from None
        if reply.has_error():
            raise Refused(reply.error.code, reply.error.reason or "the ClientApp answered with an error")
        return reply.content

    def _loaded(self, task: Assignment) -> ClientApp:
        if self._load_failure is not None:
            raise Refused(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, self._load_failure)
        if self._app is None:
            try:
                self._app = _load(task)
            except BaseException as exc:  # noqa: BLE001 - importing an app runs the app
                text = f"the ClientApp cannot be loaded: {_told(exc, task)}"
                if task.environments is not None or not isinstance(exc, DependencyMissing):
                    # Kept: an app that cannot be loaded would fail again, and slowly, for each of a thousand nodes.
                    # What is missing, though, is quickly looked up, and somebody may install it meanwhile.
                    self._load_failure = text
                raise Refused(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, text) from None
        return self._app


class _Reply:
    """A reply's content, encoded."""

    def __init__(self, content: RecordDict) -> None:
        try:
            self.encoded: Encoded = encode(content)
            self.metrics = metrics(content)
        except Exception as exc:  # noqa: BLE001 - the content is the app's: its arrays may fail in any way
            text = f"the ClientApp's reply cannot be sent: {type(exc).__name__}: {exc}"
            raise Refused(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text) from None


def _load(task: Assignment) -> ClientApp:
    environments = None if task.environments is None else Path(task.environments)
    provide(load_project(Path(task.bundle)), where=f"node {task.node_name}", environments=environments)
    if task.gpus is not None:
        os.environ[devices.VARIABLE] = task.gpus
    if task.memory_bytes is not None:  # only now: an installation may need more
        resource.setrlimit(resource.RLIMIT_DATA, (task.memory_bytes, task.memory_bytes))
    seed_task(task.seed)
    return load_clientapp(Path(task.bundle))


def _message(task: Assignment, manifest: bytes) -> Message:
    def fetch(object_hash: ObjectHash, size: int) -> memoryview:
        try:
            with (Path(task.objects) / object_hash.hex()).open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
        except FileNotFoundError:
            raise ObjectUnknown("an array is touched long after its message was answered: read it before") from None

    try:
        content = decode(manifest, fetch)
    except FlqError as exc:
        raise Refused(ErrorCode.MESSAGE_UNAVAILABLE, f"the message cannot be read: {exc}") from exc
    metadata = Metadata(
        run_id=task.run_id,
        message_id=str(task.task_id),
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=task.node_id,
        reply_to_message_id="",
        group_id=task.group,
        created_at=task.created_at,
        ttl=task.deadline - task.created_at,
        message_type=task.kind,
    )
    try:
        return Message(content, metadata=metadata)
    except ValueError as exc:
        raise Refused(ErrorCode.MESSAGE_UNAVAILABLE, f"the message cannot be read: {exc}") from exc


def _open_state(stack: contextlib.ExitStack, task: Assignment) -> StateFile | None:
    if task.state is None:
        return None
    try:
        return stack.enter_context(StateFile(Path(task.state)))
    except (OSError, FlqError) as exc:
        # An empty state in its place, or an older one, would be a wrong result that nobody sees.
        text = (
            f"STATE_UNAVAILABLE: node {task.node_name} cannot read the client state that this task starts from: {exc}\n"
            "it lies in the folder `state` of the SuperNode's cache, which has to move along with the node"
        )
        raise Refused(ErrorCode.STATE_UNAVAILABLE, text) from exc


def _stage(task: Assignment, base: StateFile | None, state: RecordDict) -> bool:
    """Write the new state if it is another one than the task has started from."""
    if base is None and isinstance(state, RecordDict) and not state:
        return False
    try:
        encoded = encode(state)
        if base is not None and encoded.manifest == base.manifest:
            return False
        write_state(Path(task.stage), encoded)
    except Exception as exc:  # noqa: BLE001 - the content is the app's: its arrays may fail in any way
        text = f"context.state cannot be kept: {type(exc).__name__}: {exc}"
        raise Refused(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text, no_room=lacks_room(exc)) from None
    return True


def _write_objects(task: Assignment, manifest: bytes, reply: _Reply) -> tuple[list[str], list[str]]:
    """Put the reply's large arrays where the SuperNode finds them; those that came with the message it has."""
    objects: Mapping[ObjectHash, memoryview] = reply.encoded.objects
    if not objects:
        return [], []
    received = object_sizes(manifest)
    written = [object_hash for object_hash in objects if object_hash not in received]
    try:
        if written:
            Path(task.scratch).mkdir(parents=True, exist_ok=True)
        for object_hash in written:
            with (Path(task.scratch) / object_hash.hex()).open("wb") as file:
                file.write(objects[object_hash])
    except OSError as exc:
        text = f"the reply's arrays cannot be written: {exc}"
        raise Refused(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, text, no_room=lacks_room(exc)) from exc
    return [object_hash.hex() for object_hash in objects], [object_hash.hex() for object_hash in written]


def _told(exc: BaseException, task: Assignment) -> str:
    """An app's error for people: what happened in the first line, then its own frames, not ours.

    The limit on memory is named if that is what it ran into.
    """
    try:
        text = _frames(exc, task)
        if task.memory_bytes is not None and _is_of_memory(exc):
            text += f"\nmemory ran out: node {task.node_name} limits a ClientApp to {shown_size(task.memory_bytes)}"
        return text
    except Exception:  # noqa: BLE001 - an exception whose str() raises is still an answer
        return type(exc).__name__


def _frames(exc: BaseException, task: Assignment) -> str:
    frames = app_frames(exc, Path(task.bundle))
    raised = f"ClientApp raised {headline(exc)}\n{frames}"
    if not isinstance(exc, FlqError):
        return raised
    # Ours says all there is to say, unless it was raised below a line of the app's.
    text = str(exc) if isinstance(exc, AppLoadError) or "  File " not in frames else raised
    return f"{text}\n{exc.hint}" if exc.hint else text


def _is_of_memory(exc: BaseException | None) -> bool:
    """Whether an error, or what it came of, says that memory ran out."""
    while exc is not None:
        torch_says = isinstance(exc, RuntimeError) and "allocate memory" in str(exc)
        if isinstance(exc, MemoryError) or torch_says or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _failed(task: Assignment, started: float, refused: Refused) -> Done:
    return Done(
        number=task.number,
        status=ResultStatus.ERROR,
        started_at=started,
        ended_at=time.time(),
        error_code=int(refused.code),
        error_text=capped(str(refused)),
        objects=[],
        written=[],
        metrics={},
        no_room=refused.no_room,
    )
