"""Several processes: who is the first, and weights shared out among them (FSDP) for models too large for one device.

With FSDP each rank keeps a part of every weight, of its gradient and of the optimiser's state; the whole weights exist
only while a step runs. torch's `fully_shard` does it, under Lightning's `ModelParallelStrategy`, on GPUs and CPUs.
"""

from __future__ import annotations

import os

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lstmvid.training.config import TrainerConfig


def is_first_process() -> bool:
    """Whether this process is the first of the whole run, before Lightning has set the others going.

    Launchers (torchrun, SLURM, Lightning's own) say so in the environment; Lightning on several nodes by NODE_RANK.
    """
    return rank_zero_only.rank == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def build_strategy(settings: TrainerConfig) -> str | Strategy:
    """Lightning's strategy: its own choice, DDP, or weights shared out among all ranks."""
    if settings.strategy != "fsdp":
        return settings.strategy
    return ModelParallelStrategy(
        data_parallel_size=settings.devices * settings.nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )


def share_out(model: nn.Module, mesh: DeviceMesh) -> None:
    """Keep a part of every weight on each rank of `mesh`, in place; a model that is shared out already is left."""
    if not isinstance(model, FSDPModule):
        # As one unit: a composite's parts read each other's weights outside of a part's own forward.
        fully_shard(model, mesh=mesh["data_parallel"])


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with whole tensors, on the CPU; on ranks but the first it may be empty.

    To be called on every rank.
    """
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


class WholeInValidation(Callback):
    """Gathers the weights once for a whole validation, in which ranks may have unequal numbers of batches."""

    def on_validation_start(self, trainer, pl_module) -> None:
        """All ranks together; forwards after this wait for nobody."""
        if isinstance(pl_module.model, FSDPModule):
            with torch.no_grad():
                pl_module.model.unshard()

    def on_validation_end(self, trainer, pl_module) -> None:
        """Give the memory back."""
        if isinstance(pl_module.model, FSDPModule):
            pl_module.model.reshard()
