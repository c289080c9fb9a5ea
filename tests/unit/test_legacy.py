"""Apps of the older kind: clients, servers and workflows, on a Grid that answers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from flq.apps import ClientApp, Context, Error, Message, RecordDict, ServerApp
from flq.apps.legacy import (
    Client,
    DefaultWorkflow,
    LegacyContext,
    NumPyClient,
    Server,
    ServerAppComponents,
    ServerConfig,
    SimpleClientManager,
    bytes_to_ndarray,
    ndarray_to_bytes,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flq.apps.legacy import mods as legacy_mods
from flq.apps.legacy.clients import GridClientProxy
from flq.apps.legacy.strategy import FedAvg
from flq.apps.legacy.typing import (
    Code,
    FitIns,
    GetParametersIns,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    Status,
)
from flq.apps.legacy.workflow import current_round
from flq.errors import AppError

NODES = (2, 3, 4)


def context(node_id: int = 1, **node_config: Any) -> Context:
    return Context(run_id=1, node_id=node_id, node_config=node_config, state=RecordDict(), run_config={})


class Moving(NumPyClient):
    """Adds 1 to every element."""

    def get_parameters(self, config: Any) -> Any:
        return [np.zeros(2)]

    def fit(self, parameters: Any, config: Any) -> Any:
        return [array + config.get("step", 1.0) for array in parameters], 10, {"loss": 0.5, "note": "fine"}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return float(parameters[0].sum()), 10, {"accuracy": 1.0}


class NowGrid:
    """Hands messages to a ClientApp and returns its replies; nodes may join, and fail."""

    def __init__(self, client_app: ClientApp, *, fail: Iterable[int] = (), nodes: Iterable[int] = NODES) -> None:
        self.client_app = client_app
        self.fail = set(fail)
        self.nodes = list(nodes)
        self.sent: list[list[Message]] = []

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise AssertionError(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise AssertionError(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.sent.append(list(messages))
        return [self._reply(message) for message in self.sent[-1]]

    def _reply(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        if node_id in self.fail:
            return Message(Error(2, "it broke"), reply_to=message)
        return self.client_app(message, context(node_id))


def client_app(client: Callable[[], Any] = Moving, **options: Any) -> ClientApp:
    return ClientApp(client_fn=lambda _: client().to_client(), **options)


def server_app(strategy: FedAvg, rounds: int = 2) -> Callable[[Any, Context], None]:
    return ServerApp(server_fn=lambda _: ServerAppComponents(strategy=strategy, config=ServerConfig(rounds)))


class Keeping(FedAvg):
    """Keeps what it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.models: list[list[float]] = []
        self.failed: list[Any] = []

    def evaluate(self, server_round: int, parameters: Parameters) -> Any:
        self.models.append(parameters_to_ndarrays(parameters)[0].tolist())
        return None

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.failed += failures
        return super().aggregate_fit(server_round, results, failures)


class TestServer:
    def test_the_first_model_is_a_clients_and_each_round_is_one_push(self):
        grid, strategy = NowGrid(client_app()), Keeping(min_available_clients=3)
        server_app(strategy)(grid, context())
        assert strategy.models == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
        assert [len(messages) for messages in grid.sent] == [1, 3, 3, 3, 3]
        assert grid.sent[0][0].metadata.message_type == "query.get_parameters"
        assert {message.metadata.group_id for message in grid.sent[1]} == {"1"}
        assert len({id(message.content) for message in grid.sent[1]}) == 1, "one content for all nodes"

    def test_a_node_that_fails_is_a_failure_and_the_round_goes_on(self):
        grid, strategy = (
            NowGrid(client_app(), fail=[3]),
            Keeping(initial_parameters=ndarrays_to_parameters([np.ones(1)])),
        )
        server_app(strategy, rounds=1)(grid, context())
        assert strategy.models == [[1.0], [2.0]]
        assert ["node 3: it broke" in str(failure) for failure in strategy.failed] == [True]

    def test_failures_that_are_not_accepted_keep_the_model(self):
        initial = ndarrays_to_parameters([np.ones(1)])
        grid = NowGrid(client_app(), fail=[3])
        strategy = Keeping(initial_parameters=initial, accept_failures=False)
        server_app(strategy, rounds=1)(grid, context())
        assert strategy.models == [[1.0], [1.0]]

    def test_a_client_that_does_not_implement_what_is_asked_is_a_failure(self):
        class Evaluating(NumPyClient):
            def evaluate(self, parameters: Any, config: Any) -> Any:
                return 1.0, 1, {}

        strategy = Keeping(initial_parameters=ndarrays_to_parameters([np.ones(1)]))
        server_app(strategy, rounds=1)(NowGrid(client_app(Evaluating)), context())
        assert [answer.status.code for _, answer in strategy.failed] == [Code.FIT_NOT_IMPLEMENTED] * 3

    def test_without_initial_parameters_anywhere_the_run_says_so(self):
        class Bare(NumPyClient):
            pass

        with pytest.raises(AppError, match="has no initial parameters") as caught:
            server_app(FedAvg())(NowGrid(client_app(Bare)), context())
        assert "initial_parameters" in (caught.value.hint or "")

    def test_a_round_waits_for_nodes(self):
        class Joining(NowGrid):
            def get_node_ids(self) -> list[int]:
                found = super().get_node_ids()
                self.nodes = list(NODES)
                return found

            def wait(self, seconds: float) -> None:
                """Nodes join meanwhile."""

        grid = Joining(client_app(), nodes=[2])
        strategy = Keeping(min_available_clients=3, min_fit_clients=3)
        server_app(strategy, rounds=1)(grid, context())
        assert len(grid.sent[1]) == 3

    def test_a_server_of_the_apps_own_and_its_parts(self):
        class Own(Server):
            def fit(self, num_rounds: int, timeout: float | None) -> Any:
                self.asked = num_rounds, timeout
                return super().fit(num_rounds, timeout)

        own = Own(client_manager=SimpleClientManager(), strategy=Keeping())
        grid: Any = NowGrid(client_app())
        ServerApp(server=own, config=ServerConfig(num_rounds=1, round_timeout=7.0))(grid, context())
        assert own.asked == (1, 7.0)
        assert parameters_to_ndarrays(own.parameters)[0].tolist() == [1.0, 1.0]

    def test_parts_and_a_main_function_exclude_each_other(self):
        with pytest.raises(ValueError, match="not both"):
            ServerApp(strategy=FedAvg(), server_fn=lambda _: ServerAppComponents())
        with pytest.raises(ValueError, match="cannot have a main function"):
            ServerApp(strategy=FedAvg()).main()(lambda _grid, _context: None)
        with pytest.raises(ValueError, match="cannot have a handler of train"):
            client_app().train()(lambda message, _context: message)

    def test_a_server_fn_that_returns_something_else(self):
        app = ServerApp(server_fn=lambda _: FedAvg())  # type: ignore[arg-type,return-value]
        with pytest.raises(AppError, match="returned FedAvg; it must return ServerAppComponents"):
            app(NowGrid(client_app()), context())  # type: ignore[arg-type]


class TestWorkflow:
    def test_it_keeps_model_round_and_history_in_the_context(self):
        legacy = LegacyContext(context(), config=ServerConfig(2), strategy=FedAvg())
        DefaultWorkflow()(NowGrid(client_app()), legacy)
        assert [array.numpy().tolist() for array in legacy.state.array_records["parameters"].values()] == [[2.0, 2.0]]
        assert current_round(legacy) == 2
        assert legacy.history.losses_distributed == [(1, 2.0), (2, 4.0)]

    def test_parts_of_a_round_can_be_replaced(self):
        rounds: list[int] = []
        workflow = DefaultWorkflow(
            fit_workflow=lambda _grid, it: rounds.append(current_round(it)),  # type: ignore[arg-type]
            evaluate_workflow=lambda _grid, it: rounds.append(-current_round(it)),  # type: ignore[arg-type]
        )
        workflow(NowGrid(client_app()), LegacyContext(context(), config=ServerConfig(2)))
        assert rounds == [1, -1, 2, -2]

    def test_another_context_is_refused(self):
        with pytest.raises(TypeError, match="LegacyContext"):
            DefaultWorkflow()(NowGrid(client_app()), context())


class TestClient:
    def ask(self, client: Callable[[], Any], ins: FitIns) -> Any:
        proxy = GridClientProxy(2, NowGrid(client_app(client)))
        return proxy.fit(ins, timeout=None, group_id=1)

    def test_a_client_fn_may_take_the_partition_as_text(self):
        seen: list[str] = []

        def client_fn(cid: str) -> Client:
            seen.append(cid)
            return Moving().to_client()

        app = ClientApp(client_fn=client_fn)  # type: ignore[arg-type]
        request = Message(RecordDict(), 2, "query.nothing")
        with pytest.raises(AppError, match=r"does not answer query\.nothing"):
            app(request, context(2, **{"partition-id": 5}))
        assert seen == ["5"]

    def test_properties_and_parameters(self):
        class Telling(Client):
            def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:
                return GetPropertiesRes(
                    Status(Code.OK, ""), {"asked": ins.config["what"], "node": self.context.node_id}
                )

        proxy = GridClientProxy(3, NowGrid(client_app(Telling)))
        answer = proxy.get_properties(GetPropertiesIns({"what": "all"}), None, None)
        assert answer.properties == {"asked": "all", "node": 3}
        nothing = proxy.get_parameters(GetParametersIns({}), None, None)
        assert nothing.status.code == Code.GET_PARAMETERS_NOT_IMPLEMENTED

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            (([], 1), "returned 2 values; it must be a tuple of a list of ndarrays"),
            ((np.ones(1), 1, {}), "returned ndarray for its arrays; it must be a list"),
            (([np.ones(1)], 1.5, {}), "returned 1.5 for the number of examples"),
            (([np.ones(1)], 1, [1]), "for its metrics; it must be a dict"),
        ],
    )
    def test_a_wrong_return_value_is_named(self, returned: Any, said: str):
        class Wrong(NumPyClient):
            def fit(self, parameters: Any, config: Any) -> Any:
                return returned

        with pytest.raises(AppError, match=said):
            self.ask(Wrong, FitIns(ndarrays_to_parameters([np.ones(1)]), {}))

    def test_a_client_fn_that_makes_no_client(self):
        with pytest.raises(AppError, match="returned NoneType; it must return a Client"):
            ClientApp(client_fn=lambda _: None)(Message(RecordDict(), 2, "train"), context(2))  # type: ignore[arg-type,return-value]

    def test_bytes_that_are_no_arrays_travel_as_they_are(self):
        class Trees(Client):
            def fit(self, ins: FitIns) -> Any:
                from flq.apps.legacy.typing import FitRes

                return FitRes(Status(Code.OK, ""), Parameters([ins.parameters.tensors[0] + b"+"], ""), 1, {})

        answer = self.ask(Trees, FitIns(Parameters([b'{"trees": 1}'], ""), {}))
        assert answer.parameters == Parameters([b'{"trees": 1}+'], "")


def test_arrays_as_bytes():
    for array in (np.ones((2, 3), np.float32), np.array(5), np.zeros((0, 2)), np.array(["a", "bc"])):
        back = bytes_to_ndarray(ndarray_to_bytes(array))
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
    with pytest.raises(ValueError, match=r"pickled|no \.npy|allow_pickle"):
        bytes_to_ndarray(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"Object arrays|allow_pickle"):
        ndarray_to_bytes(np.array([object()]))


class TestMods:
    @pytest.mark.parametrize(("norm", "clipped", "moved"), [(0.5, 1, 0.5), (2.0, 0, 1.0)])
    def test_adaptive_clipping_tells_in_the_clients_metrics(self, norm: float, clipped: int, moved: float):
        app = client_app(mods=[legacy_mods.adaptiveclipping_mod])
        proxy = GridClientProxy(2, NowGrid(app))
        answer = proxy.fit(FitIns(ndarrays_to_parameters([np.zeros(1)]), {"clipping_norm": norm}), None, 1)
        assert answer.metrics["norm_bit"] == clipped
        assert answer.metrics["note"] == "fine"
        assert parameters_to_ndarrays(answer.parameters)[0].tolist() == pytest.approx([moved])

    def test_other_messages_pass(self):
        app = client_app(mods=[legacy_mods.fixedclipping_mod, legacy_mods.adaptiveclipping_mod])
        strategy = Keeping(fraction_fit=1.0, on_fit_config_fn=lambda _: {"clipping_norm": 0.5, "step": 2.0})
        server_app(strategy, rounds=1)(NowGrid(app), context())
        assert strategy.models[1] == pytest.approx([0.5 / np.sqrt(2)] * 2)


class TestClientManager:
    def test_sample_takes_those_that_meet_the_criterion(self):
        from flq.apps.legacy import Criterion

        clients = SimpleClientManager()
        for node_id in range(2, 8):
            assert clients.register(GridClientProxy(node_id, NowGrid(client_app())))
        assert not clients.register(GridClientProxy(2, NowGrid(client_app())))

        class Even(Criterion):
            def select(self, client: Any) -> bool:
                return bool(client.node_id % 2 == 0)

        assert {client.node_id for client in clients.sample(3, criterion=Even())} == {2, 4, 6}
        assert clients.sample(4, criterion=Even()) == []
        clients.unregister(clients.all()["2"])
        assert clients.num_available() == len(clients) == 5
        assert clients.wait_for(5, timeout=1)
        assert not clients.wait_for(6, timeout=0)
