"""Three ways to lead a run: a strategy, a loop written by hand, and questions to all nodes."""

import random
from collections.abc import Callable

import numpy as np

from flq.apps import ArrayRecord, ConfigRecord, Context, Grid, Message, RecordDict, ServerApp
from flq.apps.strategy import FedAvg

app = ServerApp()

WEIGHTS = "weights.bin"
SHAPE = (160, 160)
"""Of float32: 100 KB, so that the model is an object of its own."""

BALLAST = 20_000
"""So many floats are sent along that no other run has sent: there is always something to upload."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the run, and store the bytes that it ends with."""
    arrays = LOOPS[str(context.run_config["loop"])](grid, context)
    grid.save_artifact(WEIGHTS, b"".join(array.tobytes() for array in arrays))


def model(context: Context) -> list[np.ndarray]:
    """A model of random numbers, and the ballast."""
    weights = np.random.standard_normal(SHAPE).astype(np.float32)  # noqa: NPY002 - the seeded one
    return [weights, np.zeros(10), ballast(context, 0)]


def ballast(context: Context, server_round: int) -> np.ndarray:
    """What nobody has sent before."""
    return np.full(BALLAST, 1000.0 * context.run_id + server_round)


def all_nodes(grid: Grid, context: Context) -> list[int]:
    """The ids of as many nodes as the run wants, once they are online."""
    while len(node_ids := grid.get_node_ids()) < int(context.run_config["nodes"]):
        grid.wait(0.1)
    return node_ids


def with_strategy(grid: Grid, context: Context) -> list[np.ndarray]:
    """Federated averaging."""
    nodes = int(context.run_config["nodes"])
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    result = strategy.start(grid, ArrayRecord(model(context)), num_rounds=int(context.run_config["rounds"]))
    return result.arrays.to_numpy_ndarrays()[:-1]


def by_hand(grid: Grid, context: Context) -> list[np.ndarray]:
    """Push, pull, and average, with random weights; a commit after each round."""
    node_ids = all_nodes(grid, context)
    arrays, first = model(context), 1
    if context.restored is not None:
        arrays = context.restored.array_records["arrays"].to_numpy_ndarrays()
        done = context.restored.config_records["position"]["round"]
        assert isinstance(done, int)
        first = done + 1
    for server_round in range(first, int(context.run_config["rounds"]) + 1):
        content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"server-round": server_round})})
        open_ids = grid.push_messages([Message(content, node_id, "train") for node_id in node_ids])
        replies: dict[int, list[np.ndarray]] = {}
        while len(replies) < len(node_ids):
            for reply in grid.pull_messages(open_ids):
                replies[reply.metadata.src_node_id] = reply.content.array_records["arrays"].to_numpy_ndarrays()
            grid.wait(0.1)
        shares = np.random.dirichlet(np.ones(len(node_ids)))  # noqa: NPY002 - the seeded one
        for index in range(len(arrays)):
            mean = sum(share * replies[node_id][index] for share, node_id in zip(shares, node_ids, strict=True))
            arrays[index] = np.asarray(mean, dtype=arrays[index].dtype)
        position = ConfigRecord({"round": server_round})
        context.checkpoint(RecordDict({"arrays": ArrayRecord(arrays), "position": position}), round=server_round)
    return arrays[:-1]


def by_questions(grid: Grid, context: Context) -> list[np.ndarray]:
    """Moments from all nodes, each question on what the last one has brought."""
    node_ids = all_nodes(grid, context)
    moments = np.array([0.0, 1.0])
    for server_round in range(1, int(context.run_config["rounds"]) + 1):
        question = ConfigRecord({"scale": float(np.sqrt(moments[1])) + random.random(), "server-round": server_round})  # noqa: S311
        content = RecordDict({"question": question, "ballast": ArrayRecord([ballast(context, server_round)])})
        messages = [Message(content, node_id, "query") for node_id in node_ids]
        replies = grid.send_and_receive(messages, timeout=600)
        moments = np.mean([reply.content.array_records["moments"].to_numpy_ndarrays()[0] for reply in replies], axis=0)
    return [moments]


LOOPS: dict[str, Callable[[Grid, Context], list[np.ndarray]]] = {
    "strategy": with_strategy,
    "hand": by_hand,
    "query": by_questions,
}
