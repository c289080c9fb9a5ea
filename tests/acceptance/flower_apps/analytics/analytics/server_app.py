"""The server side: questions to the nodes, and no training."""

import time

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < 4:
        time.sleep(0.1)
    question = RecordDict({"config": ConfigRecord({"bins": [0, 1, 2, 3, 4]})})
    replies = grid.send_and_receive([Message(question, node_id, "query.histogram") for node_id in nodes])
    counts = sum(np.array(reply.content["counts"]["counts"]) for reply in replies)
    print("HISTOGRAM", counts.tolist())
    ids = grid.push_messages([Message(RecordDict(), node_id, "query") for node_id in nodes])
    answers = []
    while len(answers) < len(nodes):
        answers += grid.pull_messages(ids)
        time.sleep(0.05)
    print("ERRORS", sorted(answer.has_error() for answer in answers))
