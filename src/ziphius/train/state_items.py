"""The state of a run: what the numbers after a step hang on, and how it is copied and put back.

The position in the data is the number of the step, gradients do not live across steps, and learning
rates are set anew in every step: none of them is an item.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.weights.names import model_tensors
from ziphius.train.errors import TrainingError
from ziphius.train.rng import rng_state, set_rng_state
from ziphius.train.seams import TrainState


@dataclass
class SavedItem:
    """What one item of the state is made of."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """JSON-serialisable."""


class StateItem(Protocol):
    """One item of the train state."""

    def capture(self, state: TrainState) -> SavedItem:
        """Copy the item; the run changes its own tensors while the copies are written."""
        ...

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        """Put the item back, tensors in place: optimizer and averages know them."""
        ...


class _Model:
    """Weights and buffers; nothing of a model with adapters, whose weights stand still."""

    def capture(self, state: TrainState) -> SavedItem:
        return (
            SavedItem()
            if has_adapters(state.model)
            else SavedItem(_copies(model_tensors(state.model)))
        )

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        if not has_adapters(state.model):
            _fill("the model", model_tensors(state.model), saved.tensors)


class _Adapters:
    """What moves in a model with adapters.

    The frozen weights are where the run took them from; the fingerprint has their sum.
    """

    def capture(self, state: TrainState) -> SavedItem:
        return SavedItem(_copies(_moving_tensors(state.model)))

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        _fill("the adapters", _moving_tensors(state.model), saved.tensors)


class _Optimizer:
    """The tensors that the optimizer keeps of each parameter, as `parameter|name`.

    Learning rates are no part of it: the loop sets them anew in every step.
    """

    def capture(self, state: TrainState) -> SavedItem:
        tensors = {
            f"{name}|{key}": value
            for name, parameter in state.model.named_parameters()
            for key, value in state.optimizer.state.get(parameter, {}).items()
        }
        assert all(isinstance(value, Tensor) for value in tensors.values())
        return SavedItem(_copies(tensors))

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        parameters = dict(state.model.named_parameters())
        state.optimizer.state.clear()
        for name, value in saved.tensors.items():
            owner, _, key = name.partition("|")
            parameter = parameters.get(owner)
            if parameter is None or value.shape not in ((), parameter.shape):
                _refuse(f"the optimizer's {name} {list(value.shape)} fits no weight of the model")
            state.optimizer.state[parameter][key] = value.to(parameter.device)


class _Averages:
    """The running average of the weights, if the run keeps one."""

    def capture(self, state: TrainState) -> SavedItem:
        return SavedItem() if state.ema is None else SavedItem(_copies(state.ema.tensors))

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        kept = {} if state.ema is None else state.ema.tensors
        if bool(kept) != bool(saved.tensors):
            _refuse(
                "ema_decay was 0 and is not, or the other way round: an average of the weights "
                "begins with the run"
            )
        _fill("the average of the weights", kept, saved.tensors)


class _Random:
    """The global random generators of this process."""

    def capture(self, state: TrainState) -> SavedItem:
        return SavedItem(*rng_state(_device(state)))

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        set_rng_state(saved.tensors, saved.values, _device(state))


class _Progress:
    """How far the run is, and how far it goes."""

    names = (
        "step",
        "tokens_seen",
        "seconds",
        "plan",
        "validation",
        "validation_step",
        "validation_at_start",
    )

    def capture(self, state: TrainState) -> SavedItem:
        return SavedItem(values={name: getattr(state, name) for name in self.names})

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        values = saved.values
        state.step, state.tokens_seen = values["step"], values["tokens_seen"]
        state.seconds, state.validation = values["seconds"], values["validation"]
        state.validation_step = values.get("validation_step", 0)
        state.validation_at_start = values.get("validation_at_start", {})
        # With another budget the run has the length that it asks for now.
        if state.plan.get("budget") == values["plan"].get("budget"):
            state.plan = values["plan"]


class _Guard:
    """The losses of the last steps."""

    def capture(self, state: TrainState) -> SavedItem:
        return SavedItem(values=state.guard.state())

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        state.guard.restore(saved.values)


class _Stage:
    """What the stage remembers besides the step."""

    def capture(self, state: TrainState) -> SavedItem:
        return SavedItem(values=state.stage.state())

    def restore(self, state: TrainState, saved: SavedItem) -> None:
        state.stage.restore(saved.values)


STATE_ITEMS: dict[str, StateItem] = {
    "model": _Model(),
    "adapters": _Adapters(),
    "optimizer": _Optimizer(),
    "ema": _Averages(),
    "rng": _Random(),
    "progress": _Progress(),
    "guard": _Guard(),
    "stage": _Stage(),
}
"""The train state, item by item, in the order in which it is restored."""


def has_adapters(model: Model) -> bool:
    """Tell whether a model has tensors beside those of its config."""
    return model_tensors(model).keys() != model_tensors(empty_model(model.config)).keys()


def empty_model(config: ModelConfig) -> Model:
    """Build a model without memory."""
    with torch.device("meta"):
        return Model(config)


def owner_of(model: Model, name: str) -> tuple[nn.Module, str]:
    """Return the module that a tensor belongs to, and its name there."""
    owner, _, attribute = name.rpartition(".")
    return model.get_submodule(owner), attribute


def _moving_tensors(model: Model) -> dict[str, Tensor]:
    """Name the trainable tensors and the buffers of a model with adapters; none of a plain one."""
    if not has_adapters(model):
        return {}
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    return trained | dict(model.named_buffers())


def _device(state: TrainState) -> torch.device:
    return next(state.model.parameters()).device


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


@torch.no_grad()
def _fill(owner: str, places: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy tensors to their places, after all names and shapes were compared."""
    for name in (*places, *saved):
        here, there = (_shape(tensors.get(name)) for tensors in (places, saved))
        if here != there:
            _refuse(f"in {owner}, {name} has {there} in the checkpoint and {here} in this run")
    for name, place in places.items():
        place.copy_(saved[name])


def _shape(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else f"the shape {list(tensor.shape)}"


def _refuse(reason: str) -> NoReturn:
    raise TrainingError(
        f"The checkpoint does not fit this run: {reason}. Choose another folder, or the settings "
        "the run began with."
    )
