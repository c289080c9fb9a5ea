"""The benchmark `queue`: flq's queue beside other queues, each of them in worker processes of its own."""
