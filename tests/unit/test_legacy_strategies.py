"""Legacy strategies: answers worked out by hand, and those of Flower (flwr) on the same inputs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flq.apps.legacy import SimpleClientManager, ndarrays_to_parameters, parameters_to_ndarrays
from flq.apps.legacy import strategy as s
from flq.apps.legacy.clients import GridClientProxy
from flq.apps.legacy.strategy import aggregate as rules
from flq.apps.legacy.typing import Code, EvaluateRes, FitRes, Parameters, Status
from flq.errors import StrategyError

ROUNDS = Path(__file__).parent / "legacy_rounds.py"
PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
OK = Status(Code.OK, "")


def proxy(node_id: int) -> GridClientProxy:
    return GridClientProxy(node_id, None)  # type: ignore[arg-type]


def answers(*models: list[float], examples: int = 1, metrics: dict[str, Any] | None = None) -> Any:
    return [
        (proxy(2 + place), FitRes(OK, ndarrays_to_parameters([np.array(model)]), examples, dict(metrics or {})))
        for place, model in enumerate(models)
    ]


def model(parameters: Parameters | None) -> list[float]:
    assert parameters is not None
    return [float(number) for number in parameters_to_ndarrays(parameters)[0]]


def start(*numbers: float) -> Parameters:
    return ndarrays_to_parameters([np.array(numbers)])


def fit(strategy: Any, results: Any, server_round: int = 1) -> list[float]:
    return model(strategy.aggregate_fit(server_round, results, [])[0])


class TestKnownAnswers:
    def test_fedavg_weighs_by_examples(self):
        results = answers([0.0], [4.0])
        results[1][1].num_examples = 3
        assert fit(s.FedAvg(), results) == fit(s.FedAvg(inplace=False), results) == [3.0]

    def test_fedavg_without_results_or_examples(self):
        assert s.FedAvg().aggregate_fit(1, [], []) == (None, {})
        with pytest.raises(ValueError, match="at least one"):
            s.FedAvg().aggregate_fit(1, answers([1.0], examples=0), [])

    def test_losses_and_metrics_of_an_evaluation(self):
        strategy = s.FedAvg(evaluate_metrics_aggregation_fn=lambda found: {"n": sum(examples for examples, _ in found)})
        results: Any = [(proxy(2), EvaluateRes(OK, 1.0, 1, {})), (proxy(3), EvaluateRes(OK, 3.0, 3, {}))]
        assert strategy.aggregate_evaluate(1, results, []) == (2.5, {"n": 4})

    def test_fault_tolerance_asks_for_a_share_of_the_clients(self):
        strategy = s.FaultTolerantFedAvg(min_completion_rate_fit=0.6)
        failed: Any = [RuntimeError("gone")]
        assert strategy.aggregate_fit(1, answers([1.0]), failed) == (None, {})
        assert model(strategy.aggregate_fit(1, answers([1.0], [3.0]), failed)[0]) == [2.0]

    def test_momentum(self):
        strategy = s.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, initial_parameters=start(0.0))
        assert fit(strategy, answers([1.0])) == [0.5]  # step -1, times 0.5
        # step 0.5 - 1.5 = -1, momentum 0.9 * -1 - 1 = -1.9
        assert fit(strategy, answers([1.5]), 2) == pytest.approx([0.5 + 0.95])
        with pytest.raises(StrategyError, match="needs initial_parameters"):
            s.FedAvgM(server_momentum=0.9).aggregate_fit(1, answers([1.0]), [])

    def test_medians_and_trimmed_means_do_not_follow_a_liar(self):
        results = answers([1.0], [2.0], [3.0], [1000.0])
        assert fit(s.FedMedian(), results) == [2.5]
        assert fit(s.FedTrimmedAvg(beta=0.25), results) == [2.5]
        with pytest.raises(ValueError, match="leaves none"):
            fit(s.FedTrimmedAvg(beta=0.5), results)

    def test_krum_selects_among_neighbours(self):
        results = answers([1.0], [1.1], [1.3], [1.4], [50.0])
        assert fit(s.Krum(num_malicious_clients=1), results) in ([1.1], [1.3])
        assert fit(s.Krum(num_malicious_clients=1, num_clients_to_keep=2), results)[0] < 1.5

    def test_bulyan_averages_around_the_median(self):
        honest = [[1.0 + number / 10] for number in range(6)]
        found = fit(s.Bulyan(num_malicious_clients=1), answers(*honest, [1e6]))
        assert 1.0 <= found[0] <= 1.5
        with pytest.raises(ValueError, match="Bulyan needs 7 models"):
            fit(s.Bulyan(num_malicious_clients=1), answers(*honest))

    @pytest.mark.parametrize(
        ("strategy", "step"),
        [
            # m = delta, v = delta^2
            (s.FedAdagrad(initial_parameters=start(0.0), eta=0.1, tau=1.0), 0.1 * 2 / (2 + 1.0)),
            # m = 0.1 delta, v = 0.01 delta^2; the round counts as step 2
            (
                s.FedAdam(initial_parameters=start(0.0), eta=0.1, tau=1.0),
                0.1 * math.sqrt(1 - 0.99**2) / (1 - 0.9**2) * 0.2 / (0.2 + 1.0),
            ),
            (s.FedYogi(initial_parameters=start(0.0), eta=0.1, tau=1.0), 0.1 * 0.2 / (0.2 + 1.0)),
        ],
    )
    def test_adaptive_steps(self, strategy: Any, step: float):
        assert fit(strategy, answers([2.0])) == pytest.approx([step])

    def test_qfedavg(self):
        strategy = s.QFedAvg(q_param=1.0, qffl_learning_rate=0.5, evaluate_fn=lambda *_: (2.0, {}))
        strategy.configure_fit(1, start(1.0), empty())
        # gradient (1 - 0) / 0.5 = 2; delta = 2 * 2 = 4; h = 1 * 4 + 2 / 0.5 = 8; 1 - 4 / 8
        assert fit(strategy, answers([0.0])) == pytest.approx([0.5])
        silent = s.QFedAvg()
        silent.configure_fit(1, start(1.0), empty())
        with pytest.raises(StrategyError, match="needs the loss"):
            silent.aggregate_fit(1, answers([0.0]), [])

    def test_fedprox_tells_mu(self):
        strategy = s.FedProx(proximal_mu=0.3, on_fit_config_fn=lambda number: {"round": number})
        chosen = strategy.configure_fit(4, start(1.0), three())
        assert [request.config for _, request in chosen] == [{"round": 4, "proximal_mu": 0.3}] * 3

    def test_android_models_are_flat_float32_numbers(self):
        strategy = s.FedAvgAndroid()
        raw = [(proxy(2), FitRes(OK, Parameters([np.array([1, 3], "<f4").tobytes()], ""), 1, {}))]
        parameters, _ = strategy.aggregate_fit(1, raw * 2, [])  # type: ignore[arg-type]
        assert parameters is not None
        assert strategy.parameters_to_ndarrays(parameters)[0].tolist() == [1.0, 3.0]

    def test_the_papers_rules_by_themselves(self):
        pairs: Any = [([np.array([1.0])], 1), ([np.array([4.0])], 2)]
        assert rules.aggregate(pairs)[0].tolist() == [3.0]
        assert rules.weighted_loss_avg([(1, 1.0), (3, 3.0)]) == 2.5


def empty() -> SimpleClientManager:
    return three(0)


def three(count: int = 3) -> SimpleClientManager:
    clients = SimpleClientManager()
    clients.wait_for = lambda *_, **__: True  # type: ignore[method-assign]
    for node_id in range(2, 2 + count):
        clients.register(proxy(node_id))
    return clients


class TestTrees:
    def booster(self, *trees: int) -> bytes:
        inner = {
            "gbtree_model_param": {"num_trees": str(len(trees)), "num_parallel_tree": "1"},
            "iteration_indptr": list(range(len(trees) + 1)),
            "tree_info": [0] * len(trees),
            "trees": [{"id": place, "name": tree} for place, tree in enumerate(trees)],
        }
        return json.dumps({"learner": {"gradient_booster": {"model": inner}}}).encode()

    def result(self, *trees: int) -> Any:
        return proxy(trees[0]), FitRes(OK, Parameters([self.booster(*trees)], ""), 1, {})

    def test_bagging_adds_the_trees_of_all_clients_round_by_round(self):
        strategy = s.FedXgbBagging()
        strategy.aggregate_fit(1, [self.result(10), self.result(11)], [])
        parameters, _ = strategy.aggregate_fit(2, [self.result(12)], [])
        assert parameters is not None
        trees = json.loads(parameters.tensors[0])["learner"]["gradient_booster"]["model"]["trees"]
        assert [(tree["id"], tree["name"]) for tree in trees] == [(0, 10), (1, 11), (2, 12)]

    def test_a_model_that_is_none_is_named(self):
        broken: Any = [(proxy(5), FitRes(OK, Parameters([b"no json"], ""), 1, {}))]
        with pytest.raises(StrategyError, match="the model of client 5"):
            s.FedXgbBagging().aggregate_fit(1, broken, [])

    def test_clients_take_turns(self):
        strategy = s.FedXgbCyclic()
        turns = [strategy.configure_fit(number, Parameters([b""], ""), three())[0][0].cid for number in range(1, 5)]
        assert turns == ["2", "3", "4", "2"]
        parameters, _ = strategy.aggregate_fit(1, [self.result(10)], [])
        assert parameters == Parameters([self.booster(10)], "")


class TestPrivacy:
    def test_the_server_clips_and_adds_no_noise_at_zero(self):
        strategy = s.DifferentialPrivacyServerSideFixedClipping(s.FedAvg(), 0.0, 5.0, 2)
        strategy.configure_fit(1, start(0.0, 0.0), three())
        assert fit(strategy, answers([30.0, 40.0], [3.0, 4.0])) == pytest.approx([3.0, 4.0])

    def test_noise_has_the_deviation_of_the_formula(self):
        np.random.seed(1)  # noqa: NPY002 - the generator that the strategy draws from
        strategy = s.DifferentialPrivacyServerSideFixedClipping(s.FedAvg(), 2.0, 3.0, 4)
        zeros = [0.0] * 20_000
        strategy.configure_fit(1, start(*zeros), three())
        assert np.std(fit(strategy, answers(zeros))) == pytest.approx(2.0 * 3.0 / 4, rel=0.05)

    def test_clients_that_clip_are_told_the_norm(self):
        strategy = s.DifferentialPrivacyClientSideFixedClipping(s.FedAvg(), 0.0, 5.0, 2)
        chosen = strategy.configure_fit(1, start(0.0), three())
        assert {request.config["clipping_norm"] for _, request in chosen} == {5.0}

    def test_the_norm_follows_the_share_of_clipped_updates(self):
        strategy = s.DifferentialPrivacyServerSideAdaptiveClipping(s.FedAvg(), 0.0, 2, 1.0, clipped_count_stddev=0.0)
        strategy.configure_fit(1, start(0.0), three())
        fit(strategy, answers([9.0], [8.0]))
        assert strategy.clipping_norm == pytest.approx(math.exp(0.2 * 0.5)), "all were clipped: it rises"
        fit(strategy, answers([0.1], [0.1]))
        assert strategy.clipping_norm == pytest.approx(1.0), "none was clipped: it falls"

    def test_a_client_that_does_not_tell_is_an_error(self):
        strategy = s.DifferentialPrivacyClientSideAdaptiveClipping(s.FedAvg(), 0.0, 2)
        strategy.configure_fit(1, start(0.0), three())
        with pytest.raises(StrategyError, match="norm_bit"):
            fit(strategy, answers([1.0]))

    def test_a_round_with_a_failure_gives_no_model(self):
        strategy = s.DifferentialPrivacyServerSideFixedClipping(s.FedAvg(), 1.0, 5.0, 2)
        failed: Any = [RuntimeError("gone")]
        assert strategy.aggregate_fit(1, answers([1.0]), failed) == (None, {})

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((-1.0, 1.0, 1), "noise_multiplier"),
            ((1.0, 0.0, 1), "clipping norm"),
            ((1.0, 1.0, 0), "num_sampled_clients"),
        ],
    )
    def test_parameters_out_of_range_are_named(self, options: Any, said: str):
        with pytest.raises(ValueError, match=said):
            s.DifferentialPrivacyServerSideFixedClipping(s.FedAvg(), *options)


@pytest.mark.skipif(not PEERS.exists(), reason="flwr is not installed: make peers")
def test_rounds_are_those_of_flower():
    ours = json.loads(subprocess.check_output([sys.executable, str(ROUNDS), "flq"]))
    theirs = json.loads(subprocess.check_output([str(PEERS), str(ROUNDS)], stderr=subprocess.DEVNULL))
    assert ours.keys() == theirs.keys()
    for name, arrays in theirs.items():
        for mine, expected in zip(ours[name], arrays, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-5, err_msg=name)
