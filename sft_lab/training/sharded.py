"""The strategy of a run whose model is sharded (FSDP2), with checkpoints as of a whole model."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from typing_extensions import override

from sft_lab import distributed
from sft_lab.model.adapters import kept_weights
from sft_lab.model.sharding import load_weights, sharded_like, whole


class Sharded(ModelParallelStrategy):
    """Shard the model over all devices; ``SFTModule.load`` does it.

    Lightning's strategy gathers all weights, the base's too, and restores them after the setup.
    Here a checkpoint has trained weights and optimizer states, each gathered by itself, in the
    format of a run on one device, and is restored when that of any run is.
    """

    def __init__(self) -> None:
        super().__init__(
            data_parallel_size=distributed.world_size(),
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None  # connected before anything is saved
        kept = kept_weights(module)
        return _on_first({name: whole(p) for name, p in module.named_parameters() if name in kept})

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return _on_first(tree_map(whole, optimizer.state_dict()))

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_weights(self.lightning_module, checkpoint["state_dict"])

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {key: sharded_like(value, trained[index]) for key, value in values.items()}
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _on_first(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state on the rank that writes it; the others have taken part in gathering it."""
    return state if distributed.is_first() else {}
