"""The client side: a Client that speaks in bytes, and gives the first parameters."""

import numpy as np
from flwr.client import Client, ClientApp
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)


class ByteClient(Client):
    """Adds the number of its partition."""

    def get_parameters(self, ins: GetParametersIns) -> GetParametersRes:
        return GetParametersRes(Status(Code.OK, ""), ndarrays_to_parameters([np.zeros(1)]))

    def fit(self, ins: FitIns) -> FitRes:
        moved = [array + self.context.node_config["partition-id"] for array in parameters_to_ndarrays(ins.parameters)]
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(moved), 1, {})

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        return EvaluateRes(Status(Code.OK, ""), float(parameters_to_ndarrays(ins.parameters)[0][0]), 1, {})


app = ClientApp(client_fn=lambda context: ByteClient())
