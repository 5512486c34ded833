"""Fully sharded training: each rank keeps a part of every weight, gradient and optimizer state.

The blocks of the model are sharded one by one (FSDP2, Zhao et al. 2023). A block's weights are
gathered before it runs and dropped afterwards, and its gradients are summed into each rank's part.
So all ranks run the same operations in the same order. Everything outside of steps needs care:

- an evaluation gathers all weights once, so that each rank may then generate at its own pace;
- a checkpoint is gathered tensor by tensor to rank 0, by name, in the one format that there is.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from runyard.flows import ResolvedFlow
from runyard.trainer.checkpoints.checkpoint import CheckpointContents
from runyard.trainer.steps.losses import TokenLosses, get_base_model

OPTIMIZERS = ("adamw", "sgd")  # each of whose updates concerns one number alone


def explain_unshardable(flow: ResolvedFlow, precision: str) -> str | None:
    """Return why a flow cannot be trained with sharded weights; None if it can."""
    model = flow.model
    optimizer = model.hyperparameters.optimizer.name
    if flow.settings.resources.ranks == 1:
        return "there is a single process"
    if optimizer not in OPTIMIZERS:
        return f"optimizer {optimizer!r} needs whole matrices"
    if model.training.weights_precision == "bfloat16":
        return "steps that are rounded at random need whole weights"
    if model.quantization.enabled:
        return "4-bit weights cannot be sharded"
    if precision == "float16":
        return "a scaled loss is not supported"
    if model.compute.compile is True:
        return "a compiled model is not supported"
    return None


def shard_model(module: Any, device: torch.device, size: int) -> None:
    """Replace the parameters of a model, which all ranks have, by parts of them.

    Names stay the same. The optimizers have to be replaced.
    """
    base = get_base_model(module)
    mesh = init_device_mesh(device.type, (size,))
    for block in _find_blocks(base):
        fully_shard(block, mesh=mesh)
    fully_shard(base, mesh=mesh)
    for part in _list_sharded(base):
        # Gradients are weighted by tokens before, so they are summed.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def count_largest_block_bytes(module: Any) -> int:
    """Return the bytes of the weights that are gathered at once, at most."""
    base = get_base_model(module)
    blocks = [_count_bytes(block) for block in _find_blocks(base)]
    return max([*blocks, _count_bytes(base) - sum(blocks)])


def shard_losses(module: Any, *losses: TokenLosses) -> None:
    """Let the losses run the model as its ``forward`` does, with its weights gathered."""
    base = get_base_model(module)
    for number, each in enumerate(losses):
        name = f"compute_token_losses_{number}"
        setattr(base, name, each.compute)
        register_fsdp_forward_method(base, name)
        each.compute = getattr(base, name)


@contextlib.contextmanager
def whole_weights(module: Any) -> Iterator[None]:
    """Gather all weights; within the context, no rank waits for the others to run the model."""
    parts = _list_sharded(get_base_model(module))
    for part in parts:  # the whole model first, which makes it the root of its blocks
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not parts[0], recurse=False)


def gather_contents(contents: CheckpointContents, *, is_kept: bool) -> CheckpointContents:
    """Gather the tensors of a checkpoint on this rank; where they are not kept, only take part.

    One tensor at a time is gathered on the device.
    """
    found: dict[int, torch.Tensor] = {}  # tied weights stay tied

    def gather(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gathered = {}
        for name, value in tensors.items():
            if id(value) not in found:
                whole = gather_tensor(value.detach())
                found[id(value)] = whole.to("cpu", copy=True) if is_kept else value
            gathered[name] = found[id(value)]
        return gathered

    return replace(contents, weights=gather(contents.weights), tensors=gather(contents.tensors))


def gather_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor; all ranks must call this for a sharded one."""
    whole: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole


def shard_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer with this rank's part of each tensor."""
    parameters = [member for group in optimizer.param_groups for member in group["params"]]
    return state | {
        "state": {
            index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
    }


def _shard_like(value: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    assert isinstance(parameter, DTensor)  # noqa: S101 - the optimizer was made after sharding
    return distribute_tensor(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,  # every rank has read the whole
    )


def _find_blocks(base: Any) -> list[Any]:
    """Return the repeated layers of a model: the members of its lists, those in lists left out."""
    blocks: list[Any] = []
    inner: set[int] = set()
    for layers in base.modules():
        if isinstance(layers, torch.nn.ModuleList) and id(layers) not in inner:
            for block in layers:
                inner |= {id(module) for module in block.modules()}
                blocks.append(block)
    return [block for block in blocks if any(True for _ in block.parameters())]


def _list_sharded(base: Any) -> list[FSDPModule]:
    return [module for module in base.modules() if isinstance(module, FSDPModule)]


def _count_bytes(module: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
