"""Hand over optimizer state and adapters from one stage to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lab.errors import RequestError
from sft_lab.model.adapters import freeze_and_restart, trained_weights

Weights = Mapping[str, Tensor]
"""Trained parameters by name."""


@dataclass(frozen=True)
class Boundary:
    """The model and its optimizers between the last step of a stage and the first of the next.

    Attributes:
        model: The model, with adapters where the config has them.
        optimizers: Its optimizers; their parameters must stay the same objects.
        stage: The stage about to start.
        ends: Trained parameters at the end of every stage so far by the stage's name, on the CPU;
            empty unless a policy of the run asks for them.
        seed: Seed for random values of this boundary.
    """

    model: Any
    optimizers: Sequence[torch.optim.Optimizer]
    stage: str
    ends: Mapping[str, Weights]
    seed: int


class HandOver:
    """A policy for the start of a stage, applied once, after the evaluation at the boundary.

    Set ``stages.X.hand_over: {class_path: my_policies.MyPolicy, init_args: {...}}``. A policy may
    change values of trained parameters, optimizer state, and stack adapters by
    ``model.adapters.freeze_and_restart``: all of that is in every checkpoint. State of its own
    would not be; the ends of earlier stages come with the ``Boundary``.

    Attributes:
        needs_ends: Keep the trained parameters at the end of every stage, as ``Boundary.ends``.
        stacks_adapters: The policy freezes LoRA adapters and trains new ones, so it needs a model
            with adapters, and ends before it cannot be averaged with ends after it.
    """

    needs_ends = False
    stacks_adapters = False

    def apply(self, boundary: Boundary) -> None:
        """Prepare the model and its optimizers for the first step of the stage."""
        raise NotImplementedError


class Continue(HandOver):
    """Train on as the stage before left off.

    Args:
        optimizer: ``fresh`` drops the moments of the stage before, ``keep`` carries them over.
            ``stages.X.optimizer`` is short for this.
    """

    def __init__(self, optimizer: Literal["fresh", "keep"] = "fresh") -> None:
        self.optimizer = optimizer

    def apply(self, boundary: Boundary) -> None:
        """Drop the optimizers' state, if it is to be fresh."""
        if self.optimizer == "fresh":
            drop_state(boundary.optimizers)


class NewAdapter(HandOver):
    """Freeze the adapter trained so far into the base, and train a new one on top of it.

    The frozen adapter stays beside the base instead of being added to its weights. That gives the
    same function to the bit before the first step, works on a quantized base, whose weights would
    be rounded again by a merge, and leaves the base itself in place: an exported adapter still
    belongs to ``model.base``, and base logits stay the base's. The price is one more low-rank
    product per layer and stage.
    """

    stacks_adapters = True

    def apply(self, boundary: Boundary) -> None:
        """Stack a new adapter and drop the optimizers' state, which belonged to the old one."""
        freeze_and_restart(boundary.model, boundary.seed)
        drop_state(boundary.optimizers)


class AverageStages(HandOver):
    """Start from the mean of the weights at the ends of all stages so far.

    The mean is taken parameter by parameter, as in model soups; LoRA's A and B are averaged each
    for itself, which is close to averaging their products as long as the stages started from one
    another.

    Args:
        optimizer: As for ``Continue``.
    """

    needs_ends = True

    def __init__(self, optimizer: Literal["fresh", "keep"] = "fresh") -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def apply(self, boundary: Boundary) -> None:
        """Average the ends, and drop the optimizers' state, if it is to be fresh."""
        for name, parameter in boundary.model.named_parameters():
            if parameter.requires_grad:
                ends = [end[name] for end in boundary.ends.values()]
                parameter.copy_(torch.stack(ends).double().mean(dim=0))
        if self.optimizer == "fresh":
            drop_state(boundary.optimizers)


def drop_state(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Forget moments and step counts: an optimizer without state starts as a new one would."""
    for optimizer in optimizers:
        optimizer.state.clear()


class HandOvers:
    """Apply the policies of a run's stages, and keep the ends that they ask for.

    Args:
        policies: The policy of every stage by name, in order.
        seed: Seed of the run's adapters.
    """

    def __init__(self, policies: Mapping[str, HandOver], seed: int) -> None:
        self.policies = policies
        self.seed = seed
        self.ends: dict[str, dict[str, Tensor]] = {}

    def check(self, num_ended: int) -> None:
        """Check that the ends which policies of later stages need have been kept.

        Args:
            num_ended: Stages whose final weights have already been kept.

        Raises:
            RequestError: If the run, or the one that it was forked from, has not kept them.
        """
        names = list(self.policies)
        missing = [name for name in names[:num_ended] if name not in self.ends]
        needing = [name for name in names[num_ended + 1 :] if self.policies[name].needs_ends]
        if missing and needing:
            raise RequestError(
                f"data.stages.{needing[0]}.hand_over needs the weights at the end of stage "
                f"'{missing[0]}', which this run was trained past without keeping them; start it "
                f"from an earlier stage, or use another policy."
            )

    def start(self, stage: str, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Apply the policy of a stage that is not the first."""
        names = list(self.policies)
        index = names.index(stage)
        if any(self.policies[name].needs_ends for name in names[index:]):
            self.ends[names[index - 1]] = trained_weights(model)
        boundary = Boundary(model, optimizers, stage, self.ends, seed=self.seed + index)
        self.policies[stage].apply(boundary)

    def state_dict(self) -> dict[str, Any]:
        """Return the ends kept so far."""
        return {"ends": self.ends}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the ends that a checkpoint kept."""
        self.ends = dict(state_dict["ends"])
