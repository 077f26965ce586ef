"""The optimizer's state in a checkpoint: moments by parameter name, settings from this run's own arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from alip.errors import UserError
from alip.train.optimizer import own_parameters
from alip.train.sharding import full_of_part, part_of_full

_SCHEDULED = ("params", "lr", "betas")  # what is set from outside: what a schedule moved last is no state
_FIX = "start from the weights alone with --pretrained CHECKPOINT and another --output"


class OptimizerState:
    """Captures and restores an optimizer's state.

    Restored are the moments, copied into each parameter's own memory layout, and those values of a parameter group
    that the optimizer itself moves. Settings (weight decay, eps, betas, …) stay as this run's arguments made them.
    Make it before the first step: it notes the groups' settings as they are then.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.whole = dict(model.named_parameters())
        names = {id(parameter): name for name, parameter in own_parameters(model).items()}
        self.parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
        self.settings = [_plain(group) for group in optimizer.param_groups]

    def capture(self, keep: bool = True) -> dict[str, Any]:
        """torch's state dict, with the parameters' names in its numbering, the class and the first settings.

        Of a divided model whole moments, in host memory; every rank calls it. keep: False where nothing is written.
        """
        state = self.optimizer.state_dict()
        names = list(self.parameters)
        moments = {
            number: {key: self._whole(names[number], value, keep) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": moments, "names": names, "class": self._class, "settings": self.settings}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restores a captured state, also one of earlier versions, which has no names; UserError where it cannot."""
        if saved.get("class", "AdamW") != self._class:
            raise UserError(f"the checkpoint's optimizer is {saved['class']}, this run's is {self._class}; {_FIX}")
        states = self._states_by_name(saved)
        others = sorted(states.keys() ^ self.parameters.keys())
        if others:
            shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            raise UserError(f"the checkpoint trains other parameters than this run ({shown}); {_FIX}")
        if any(group.get("amsgrad") for group in self.optimizer.param_groups) and any(
            state and not any("max" in key for key in state) for state in states.values()
        ):
            raise UserError(f"the checkpoint has no maxima of the second moments, which amsgrad needs; {_FIX}")
        for name, state in states.items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                key: self._fitting(name, key, value, parameter) for key, value in state.items()
            }
        self._restore_groups(saved)

    @property
    def _class(self) -> str:
        return type(self.optimizer).__name__

    def _states_by_name(self, saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        names = saved.get("names")
        if names is None:  # an earlier version: the same order, if the groups are the same
            sizes = [len(group["params"]) for group in saved["param_groups"]]
            if sizes != [len(group["params"]) for group in self.optimizer.param_groups]:
                raise UserError(f"the checkpoint's parameters are grouped otherwise than this run's; {_FIX}")
            names = list(self.parameters)
        found = dict(zip(numbers, names))
        return {found[number]: saved["state"].get(number, {}) for number in numbers}

    def _fitting(self, name: str, key: str, value: Any, parameter: torch.Tensor) -> Any:
        """A saved value in the place, type and memory layout that the optimizer's kernels expect."""
        if not isinstance(value, torch.Tensor):
            return value
        if key == "step":
            fused = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
            return value.to(parameter.device if fused else "cpu", torch.float32, copy=True)
        whole = self.whole[name]
        if value.shape != whole.shape:
            if self._class == "AdamW" and key.startswith("exp_avg"):
                raise UserError(f"{key} of {name} has the shape {tuple(value.shape)}, not {tuple(whole.shape)}")
            return value.to(parameter.device, copy=True)  # factored moments have shapes of their own
        # Fused kernels walk through parameter and moments alike, whatever their strides are.
        adapts = self._class == "AdamW" and value.is_floating_point()  # others may keep moments in a type of their own
        dtype = parameter.dtype if adapts else value.dtype
        return torch.empty_like(parameter, dtype=dtype).copy_(part_of_full(value, whole))

    def _whole(self, name: str, value: Any, keep: bool) -> Any:
        """A moment of a divided parameter in one piece."""
        return full_of_part(value, self.whole[name], keep) if isinstance(value, torch.Tensor) and value.ndim else value

    def _restore_groups(self, saved: dict[str, Any]) -> None:
        """What a group held at the start in the saved run and in this one alike, the optimizer may have moved since;
        what it did not hold then is the optimizer's own."""
        if "settings" not in saved or len(saved["settings"]) != len(self.settings):
            return
        for group, now, before, last in zip(
            self.optimizer.param_groups, self.settings, saved["settings"], saved["param_groups"]
        ):
            for key, value in last.items():
                if key in _SCHEDULED:
                    continue
                settled = key in now and key in before and now[key] == before[key] and type(now[key]) is type(value)
                if settled or (key not in now and key not in before):  # such as timm's step count
                    group[key] = last[key]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """A group's values that are no tensors."""
    return {
        key: value
        for key, value in group.items()
        if key != "params" and isinstance(value, bool | int | float | str | tuple | list | None)
    }
