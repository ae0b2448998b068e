"""One step of a model on a batch: what the engine calls, and the runner on the module tree.

Shapes: M tokens of the batch, L rows whose logits are wanted, W vocabulary, Y expert layers,
K experts per token.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model


class RunnerOutput(NamedTuple):
    """What a step of a model leaves beside the rows in its cache."""

    logits_LW: Tensor
    """float32, of the rows that the batch asks for; overwritten by the next step."""
    routes_MYK: Tensor | None
    """int16, on the CPU: the experts of every token, expert layers in their order. None unless
    they are recorded, and where there are none."""
    hidden_MD: Tensor | None = None
    """Of every token, behind the final norm; overwritten by the next step. None unless asked for.
    """


class Runner(Protocol):
    """Computes a step: writes the cache rows of all tokens of a batch, and returns logits.

    Calling it again with the same batch gives the same rows and logits.
    """

    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        """Run one step."""
        ...


class TorchRunner:
    """Runs the module tree.

    Args:
        model: shared, not copied, and in evaluation mode whenever a step runs.
        record_routes: return the experts of every token.
        return_hidden: return the hidden states of every token.
    """

    def __init__(
        self, model: Model, *, record_routes: bool = False, return_hidden: bool = False
    ) -> None:
        self._model = model
        self._record_routes = record_routes
        self._return_hidden = return_hidden

    @torch.inference_mode()
    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        """Run one step."""
        assert not self._model.training, "a model that is being trained is not asked"
        output = self._model(batch)
        logits_LW = self._model.logits(output.wanted_LD).float()
        hidden_MD = output.hidden_BTD[0] if self._return_hidden else None
        if not (self._record_routes and output.routings):
            return RunnerOutput(logits_LW, None, hidden_MD)
        experts = [output.routings[layer].experts_MK for layer in sorted(output.routings)]
        routes_MYK = torch.stack(experts, dim=1).to("cpu", torch.int16)
        return RunnerOutput(logits_LW, routes_MYK, hidden_MD)
