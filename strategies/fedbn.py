r"""FedBN: each client keeps its normalisation layers to itself.

Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local
Batch Normalization", ICLR 2021, arXiv:2102.07623, algorithm 1: for a layer l that
normalises, client k goes on with the parameters and statistics it ended with,

.. math:: w^{(l)}_{t+1,k} = w^{(l),k}_{t+1}

and all other layers are averaged as FedAvg's. The paper's mean gives each client the
same weight; here, as in FedAvg, it is that of its examples. Normalisation is any of
PyTorch's normalising layers, group normalisation too.

No one model comes out of this: what the server has is the shared layers with untrained
normalisation, so it is not judged on the test split. The clients' verdict,
`validation_accuracy`, is of their own models.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies.fedavg import FedAvg
from strategies.interfaces import LocalTraining, Memory
from strategies.wire import Arrays

if TYPE_CHECKING:
    from torch import nn


class FedBN(FedAvg):
    """FedAvg of all but the normalisation layers."""

    ONE_MODEL = False
    KEEPS_STATE = True

    def check_model(self, model: "nn.Module") -> None:
        """Raises: ValueError: the model has no normalisation layer."""
        if not own_names(model):
            raise ValueError(
                "the model has no normalisation layer for clients to keep: use "
                "improved-cnn or resnet, or strategy = 'fedavg'"
            )

    @staticmethod
    def client_model(model: "nn.Module", memory: Memory) -> None:
        """Put the client's own normalisation in place of the received one."""
        import torch

        state = model.state_dict()
        with torch.no_grad():
            for name, array in memory.state.items():
                state[name].copy_(torch.from_numpy(np.array(array)))

    @staticmethod
    def client_train(
        model: "nn.Module",
        train: LocalTraining,
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> dict[str, float]:
        """Train all layers; remember those that normalise."""
        metrics = train()
        if memory is not None:
            state = model.state_dict()
            names = own_names(model)
            memory.kept = {n: state[n].cpu().numpy().copy() for n in names}
        return metrics

    @staticmethod
    def client_update(
        update: Arrays,
        metrics: dict[str, float],
        options: Mapping[str, Any],
        memory: Memory | None = None,
    ) -> Arrays:
        """Return the update without what is the client's own: zeros in its place."""
        own = memory.kept if memory and memory.kept else {}
        return {n: np.zeros_like(a) if n in own else a for n, a in update.items()}


def own_names(model: "nn.Module") -> list[str]:
    """Return names of the parameters and buffers of all layers that normalise."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return [
        f"{layer}.{name}"
        for layer, module in model.named_modules()
        if isinstance(module, kinds)
        for name in module.state_dict()
    ]


STRATEGY = FedBN
