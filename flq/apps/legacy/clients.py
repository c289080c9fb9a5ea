"""The server's view of its clients: a proxy for each node, and the list of those that are online."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from logging import INFO
from typing import Any, Generic, TypeVar

from flq.apps.legacy import translation
from flq.apps.legacy.typing import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    MessageTypeLegacy,
    Properties,
    ReconnectIns,
)
from flq.apps.logger import log
from flq.apps.strategy.grids import MessageGrid, WaitingGrid
from flq.errors import AppError
from flq.wire.message import Message, MessageType
from flq.wire.records import RecordDict

Ins = TypeVar("Ins")
Res = TypeVar("Res", bound=FitRes | EvaluateRes | GetParametersRes | GetPropertiesRes)

LOOK_SECONDS = 1.0
"""How often the nodes are looked at while too few are online."""


class ClientProxy(ABC):
    """Stands for a client on the server."""

    node_id: int

    def __init__(self, cid: str) -> None:
        self.cid = cid
        self.properties: Properties = {}

    @abstractmethod
    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """The client's properties."""

    @abstractmethod
    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """The client's parameters."""

    @abstractmethod
    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Let the client train."""

    @abstractmethod
    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Let the client evaluate."""

    @abstractmethod
    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """Let the client go away for a while."""


class Call(Generic[Ins, Res]):
    """A kind of request: its message type, how it is written and its answer read, and the proxy's method for it."""

    def __init__(
        self,
        message_type: str,
        write: Callable[[Ins], RecordDict],
        read: Callable[[RecordDict], Res],
        method: str,
    ) -> None:
        self.message_type = message_type
        self.write = write
        self.read = read
        self.method = method


FIT = Call(MessageType.TRAIN, translation.fitins_to_records, translation.records_to_fitres, "fit")
EVALUATE = Call(
    MessageType.EVALUATE, translation.evaluateins_to_records, translation.records_to_evaluateres, "evaluate"
)
GET_PARAMETERS = Call(
    MessageTypeLegacy.GET_PARAMETERS,
    translation.getparametersins_to_records,
    translation.records_to_getparametersres,
    "get_parameters",
)
GET_PROPERTIES = Call(
    MessageTypeLegacy.GET_PROPERTIES,
    translation.getpropertiesins_to_records,
    translation.records_to_getpropertiesres,
    "get_properties",
)


class GridClientProxy(ClientProxy):
    """A node that is reached through a Grid."""

    def __init__(self, node_id: int, grid: MessageGrid) -> None:
        super().__init__(str(node_id))
        self.node_id = node_id
        self.grid = grid

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """Ask the node, and wait for its answer. Raises `AppError` for an error in its place."""
        return self._ask(GET_PROPERTIES, ins, timeout, group_id)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """Ask the node, and wait for its answer. Raises `AppError` for an error in its place."""
        return self._ask(GET_PARAMETERS, ins, timeout, group_id)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Ask the node, and wait for its answer. Raises `AppError` for an error in its place."""
        return self._ask(FIT, ins, timeout, group_id)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Ask the node, and wait for its answer. Raises `AppError` for an error in its place."""
        return self._ask(EVALUATE, ins, timeout, group_id)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:  # noqa: ARG002 - the interface of ClientProxy
        """Do nothing: a node comes and goes by itself, and serves other runs too."""
        return DisconnectRes("")

    def _ask(self, call: Call[Ins, Res], ins: Ins, timeout: float | None, group_id: int | None) -> Res:
        (answer,) = _through_grid(self.grid, call, [(self, ins)], timeout, group_id)
        if isinstance(answer, BaseException):
            raise answer
        return answer[1]


class Criterion(ABC):
    """Chooses among clients."""

    @abstractmethod
    def select(self, client: ClientProxy) -> bool:
        """Whether the client may be chosen."""


class ClientManager(ABC):
    """Knows the clients that are online."""

    @abstractmethod
    def num_available(self) -> int:
        """How many clients are online."""

    @abstractmethod
    def register(self, client: ClientProxy) -> bool:
        """Take note of a client; false if it is known."""

    @abstractmethod
    def unregister(self, client: ClientProxy) -> None:
        """Forget a client."""

    @abstractmethod
    def all(self) -> dict[str, ClientProxy]:
        """The clients by their cid."""

    @abstractmethod
    def wait_for(self, num_clients: int, timeout: int) -> bool:
        """Wait until so many clients are online; false if that takes longer than `timeout` seconds."""

    @abstractmethod
    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        """Choose clients at random."""


class SimpleClientManager(ClientManager):
    """Knows the clients that were registered. In a run it looks by itself which nodes are online."""

    def __init__(self) -> None:
        self.clients: dict[str, ClientProxy] = {}
        self._changed = threading.Condition()
        self._attendance: Attendance | None = None

    def follow(self, attendance: Attendance) -> None:
        """From now on look at the nodes of a Grid while waiting."""
        self._attendance = attendance

    def __len__(self) -> int:
        return len(self.clients)

    def num_available(self) -> int:
        """How many clients are online."""
        return len(self)

    def wait_for(self, num_clients: int, timeout: int = 86400) -> bool:
        """Wait until so many clients are online; false if that takes longer than `timeout` seconds."""
        if self._attendance is not None:
            return self._attendance.wait_for(lambda: len(self) >= num_clients, timeout)
        with self._changed:
            return self._changed.wait_for(lambda: len(self) >= num_clients, timeout)

    def register(self, client: ClientProxy) -> bool:
        """Take note of a client; false if it is known."""
        if client.cid in self.clients:
            return False
        with self._changed:
            self.clients[client.cid] = client
            self._changed.notify_all()
        return True

    def unregister(self, client: ClientProxy) -> None:
        """Forget a client."""
        if self.clients.pop(client.cid, None) is not None:
            with self._changed:
                self._changed.notify_all()

    def all(self) -> dict[str, ClientProxy]:
        """The clients by their cid."""
        return self.clients

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        """`num_clients` at random once `min_num_clients` are online; none if fewer meet the criterion."""
        self.wait_for(num_clients if min_num_clients is None else min_num_clients)
        cids = [cid for cid, client in self.clients.items() if criterion is None or criterion.select(client)]
        if num_clients > len(cids):
            log(INFO, "%d clients were to be chosen of %d: none is", num_clients, len(cids))
            return []
        return [self.clients[cid] for cid in random.sample(cids, num_clients)]  # the run seeds this generator


class Attendance:
    """Keeps the clients of a ClientManager to the nodes of a Grid that are online."""

    def __init__(self, grid: MessageGrid, clients: ClientManager) -> None:
        self._grid = grid
        self._clients = clients
        if isinstance(clients, SimpleClientManager):
            clients.follow(self)

    def take(self) -> None:
        """Register nodes that have come, unregister those that have gone."""
        online = {str(node_id): node_id for node_id in self._grid.get_node_ids()}
        known = self._clients.all()
        for cid in known.keys() - online.keys():
            if isinstance(known[cid], GridClientProxy):
                self._clients.unregister(known[cid])
        for cid, node_id in online.items():
            if cid not in known:
                self._clients.register(GridClientProxy(node_id, self._grid))

    def wait_for(self, enough: Callable[[], bool], timeout: float) -> bool:
        """Look until `enough`, at most `timeout` seconds."""
        give_up = time.monotonic() + timeout
        self.take()
        while not enough():
            if time.monotonic() >= give_up:
                return False
            self._pause()
            self.take()
        return True

    def _pause(self) -> None:
        if isinstance(self._grid, WaitingGrid):
            self._grid.wait(LOOK_SECONDS)
        else:
            time.sleep(LOOK_SECONDS)


Answers = tuple[list[tuple[ClientProxy, Res]], list[tuple[ClientProxy, Res] | BaseException]]
"""What clients have answered, and what went wrong with others."""


def ask(
    call: Call[Ins, Res], instructions: Sequence[tuple[ClientProxy, Ins]], timeout: float | None, group_id: int
) -> Answers[Res]:
    """Ask many clients at once; the answers in the order of the requests."""
    results: list[tuple[ClientProxy, Res]] = []
    failures: list[tuple[ClientProxy, Res] | BaseException] = []
    for answer in _answers(call, instructions, timeout, group_id):
        if isinstance(answer, BaseException):
            failures.append(answer)
        elif answer[1].status.code == Code.OK:
            results.append(answer)
        else:
            failures.append(answer)
    return results, failures


def _answers(
    call: Call[Ins, Res], instructions: Sequence[tuple[ClientProxy, Ins]], timeout: float | None, group_id: int
) -> Iterable[tuple[ClientProxy, Res] | BaseException]:
    grids = {id(proxy.grid): proxy.grid for proxy, _ in instructions if isinstance(proxy, GridClientProxy)}
    if len(grids) == 1 and all(isinstance(proxy, GridClientProxy) for proxy, _ in instructions):
        return _through_grid(next(iter(grids.values())), call, instructions, timeout, group_id)
    return [_alone(call, proxy, ins, timeout, group_id) for proxy, ins in instructions]


def _alone(
    call: Call[Ins, Res], proxy: ClientProxy, ins: Ins, timeout: float | None, group_id: int
) -> tuple[ClientProxy, Res] | BaseException:
    try:
        return proxy, getattr(proxy, call.method)(ins, timeout, group_id)
    except Exception as exc:  # noqa: BLE001 - a proxy of the app's own: strategies are told of its failures
        return exc


def _through_grid(
    grid: MessageGrid,
    call: Call[Ins, Res],
    instructions: Sequence[tuple[ClientProxy, Ins]],
    timeout: float | None,
    group_id: int | None,
) -> list[tuple[ClientProxy, Res] | BaseException]:
    contents: dict[int, RecordDict] = {}  # the same request to many is written, and stored, once
    messages = []
    for proxy, ins in instructions:
        if id(ins) not in contents:
            contents[id(ins)] = call.write(ins)
        group = "" if group_id is None else str(group_id)
        messages.append(Message(contents[id(ins)], proxy.node_id, call.message_type, group_id=group))
    proxies = {proxy.node_id: proxy for proxy, _ in instructions}
    return [_answer(call, proxies, reply) for reply in grid.send_and_receive(messages, timeout=timeout)]


def _answer(
    call: Call[Any, Res], proxies: dict[int, ClientProxy], reply: Message
) -> tuple[ClientProxy, Res] | BaseException:
    node_id = reply.metadata.src_node_id
    if reply.has_error():
        return AppError(f"node {node_id}: {reply.error.reason or f'error {reply.error.code}'}")
    try:
        return proxies[node_id], call.read(reply.content)
    except AppError as exc:
        return exc
