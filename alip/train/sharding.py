"""`--fsdp`: parameters, gradients and moments divided over the ranks (torch's FSDP2), for models that do not fit whole.

Every block's parameters are gathered just before it runs and dropped after it, forward and backward; a rank keeps 1/N
of everything else. What is computed, and the checkpoint on disk, are those of DistributedDataParallel: a run may go
from one to the other, and to another number of ranks.

The optimizer works on each rank's own part as on plain tensors, so its fused kernel, and the way it leaves out a step
on the device, stay as they are. That is right for AdamW, which treats every number by itself, and for no optimizer
that looks at whole matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from alip.distributed import World, ranks_of_a_machine
from alip.errors import UserError
from alip.model.transformer import run_block, runs_unpadded
from alip.train.optimizer import gradient_norm, own_parameters

SCOPES = ("full", "node")


def shard(model: nn.Module, world: World, scope: str, *, opt: str = "adamw", precision: str = "fp32") -> None:
    """Divides the model over the ranks, in place, and moves this rank's part to its device; nothing on a single rank.

    scope: "full" divides over all ranks; "node" over those of a machine, with a copy on each machine.
    opt, precision: those of the run; UserError where they cannot be used so.
    """
    if opt != "adamw":
        raise UserError(f"--fsdp works with --opt adamw, not {opt}: each rank's optimizer sees a part of every matrix")
    if precision == "amp":
        raise UserError("--fsdp with fp16: the ranks would scale gradients differently; use --precision amp_bf16")
    if not world.is_distributed:
        return
    # A scalar cannot be divided: each rank keeps it whole, and `Gradients` averages its gradient.
    whole = {p for name, p in model.named_parameters() if name in ("logit_scale", "logit_bias")}
    options = {"mesh": _mesh(world, scope), "ignored_params": whole}
    for block in _blocks(model):
        fully_shard(block, **options)
    for transformer in model.modules():
        if hasattr(transformer, "resblocks") and runs_unpadded(transformer):
            for block in transformer.resblocks:
                block.run_block = partial(run_block, block)
                register_fsdp_forward_method(block, "run_block")
    fully_shard(model, **options)
    # Both texts' features are views of one tensor, and FSDP2 warns of views: a change in place would lose its hook.
    model.register_forward_hook(lambda _, inputs, outputs: tuple(one.clone() for one in outputs), prepend=True)
    model.to(world.device)
    model.shard_mesh, model.own_parts = options["mesh"], dict(_own_parts(model))


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has divided this model."""
    return isinstance(model, FSDPModule)


def full_state(model: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """The model's state dict with whole tensors; every rank calls it. keep: as for `full`."""
    return {name: full(value, keep) for name, value in model.state_dict().items()}


def full(value: torch.Tensor, keep: bool = True) -> torch.Tensor:
    """The whole of a divided tensor in host memory, or the tensor itself; every rank calls it.

    keep: False on ranks that only give their part; they get an empty tensor.
    """
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()  # an all-gather: one tensor at a time is whole on the device
    return whole.cpu() if keep else whole.new_empty(0)


def full_of_part(part: torch.Tensor, parameter: torch.Tensor, keep: bool = True) -> torch.Tensor:
    """The whole of what has `part` on this rank and is divided as `parameter` is; otherwise as `full`."""
    if not isinstance(parameter, DTensor) or part.shape != parameter.to_local().shape:
        return part
    mesh, placements = parameter.device_mesh, parameter.placements
    size = {"shape": parameter.shape, "stride": parameter.stride()}
    return full(DTensor.from_local(part, mesh, placements, run_check=False, **size), keep)


def divided(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor divided as `like` is, without communication; itself where `like` is not divided."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def part_of_full(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor that is divided as `like` is, or the tensor itself."""
    return divided(value, like).to_local() if isinstance(like, DTensor) else value


def load_full(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """`model.load_state_dict(state)` from whole tensors."""
    present = model.state_dict()
    fits = {n: n in present and present[n].shape == v.shape for n, v in state.items()}
    model.load_state_dict({n: divided(v, present[n]) if fits[n] else v for n, v in state.items()})


class Gradients:
    """The gradients of what the optimizer moves: plain tensors, this rank's own parts if the model is divided."""

    def __init__(self, model: nn.Module):
        own = own_parameters(model)
        self._pairs = [(own[name], p) for name, p in model.named_parameters() if p.requires_grad]
        self._mesh: DeviceMesh | None = model.shard_mesh if is_sharded(model) else None
        self.parameters = [part for part, _ in self._pairs]

    def clear(self) -> None:
        """Drops them."""
        for part, parameter in self._pairs:
            part.grad = parameter.grad = None

    def collect(self) -> None:
        """After the backward pass: gives each part its gradient, the mean over the ranks."""
        if self._mesh is None:
            return
        for part, parameter in self._pairs:
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                part.grad = gradient.to_local()
            elif gradient is not None:
                dist.all_reduce(gradient)
                gradient.div_(dist.get_world_size())

    def norm(self) -> torch.Tensor:
        """The length of all gradients of all parts together, a scalar on the device, equal on every rank."""
        if self._mesh is None:
            return gradient_norm([p.grad for p in self.parameters if p.grad is not None])
        squares = self._squares(divided=True)
        # The last dimension of the mesh is the one over which parameters are divided.
        dist.all_reduce(squares, group=self._mesh.get_group(self._mesh.ndim - 1))
        return (squares + self._squares(divided=False)).sqrt()

    def _squares(self, divided: bool) -> torch.Tensor:
        norms = [
            torch.linalg.vector_norm(part.grad).square()
            for part, parameter in self._pairs
            if part.grad is not None and isinstance(parameter, DTensor) == divided
        ]
        return torch.stack(norms).sum() if norms else torch.zeros((), device=self.parameters[0].device)


def _mesh(world: World, scope: str) -> DeviceMesh:
    local = world.world_size if scope == "full" else ranks_of_a_machine(world)
    if local == world.world_size:
        return init_device_mesh(world.device.type, (world.world_size,))
    shape = (world.world_size // local, local)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("copies", "parts"))
    # Groups of a mesh have the backend's own timeout, not that of the group they are made from.
    set_timeout = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout  # until torch 2.13
    for group in mesh.get_all_groups():
        set_timeout(timedelta(minutes=world.timeout_minutes), group)
    return mesh


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of all towers, outermost ones only: those of a list with several modules of one class."""
    inside: set[int] = set()
    for container in model.modules():
        if id(container) in inside or not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        children = [child for child in container if any(True for _ in child.parameters())]
        if len(children) > 1 and len({type(child) for child in children}) == 1:
            for child in children:
                inside.update(id(module) for module in child.modules())
                yield child


def _own_parts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            # Shares the memory of the parameter's own part.
            yield name, nn.Parameter(parameter.detach().to_local(), requires_grad=parameter.requires_grad)
        else:
            yield name, parameter
