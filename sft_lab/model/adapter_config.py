"""Configure adapters, by LoRA's four usual arguments or by any config class of PEFT; add them."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import RequestError
from sft_lab.model.late_compile import import_bitsandbytes

_REFUSED_INITS = {
    ("corda", "eva", "lora_ga"): "needs a pass over data that the lab does not make",
    ("pissa_niter",): "splits the base at random, so that no exported adapter would fit it",
}
_FROM_BASE = ("pissa", "olora", "loftq")


@dataclass(frozen=True)
class Lora:
    """Configure LoRA adapters, with PEFT's names.

    Args:
        r: Rank.
        lora_alpha: Scale; the update is multiplied by ``lora_alpha / r``.
        lora_dropout: Dropout on the adapters' input, in [0, 1).
        target_modules: Module names, or ``all-linear`` for every linear layer but the head, and,
            where PEFT knows them, the experts; ``inspect`` names what is adapted.
    """

    r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    target_modules: str | list[str] = field(default="all-linear")

    key = "model.lora"
    changes_base = False

    def __hash__(self) -> int:
        return hash(repr(self))  # a list among the fields has no hash

    def config(self) -> Any:
        """Return PEFT's config."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True)
class Peft:
    """Configure adapters by a config class of PEFT.

    Args:
        class_path: The class, such as ``peft.LoraConfig``.
        init_args: Its arguments.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    key = "model.peft"

    def __hash__(self) -> int:
        return hash(repr(self))

    def config(self) -> Any:
        """Return PEFT's config.

        Raises:
            RequestError: If it makes no adapters that the lab can train.
        """
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.tuners_utils import BaseTuner

        module, _, name = self.class_path.rpartition(".")
        try:
            owner = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as fault:
            why = f"it cannot be imported: {fault}"
            raise self._refusal(why, "name a config class of PEFT") from fault
        if not (isinstance(owner, type) and issubclass(owner, PeftConfig)):
            raise self._refusal("it is not a PEFT config", "name one, such as peft.LoraConfig")
        try:
            config = owner(**{"task_type": "CAUSAL_LM"} | dict(self.init_args))
        except Exception as fault:  # whatever the checks of a config raise
            raise self._refusal(_first_line(fault), "change model.peft.init_args") from fault
        tuners: dict[Any, Any] = PEFT_TYPE_TO_TUNER_MAPPING
        tuner = tuners.get(config.peft_type)
        if tuner is None or not issubclass(tuner, BaseTuner):
            raise self._refusal(
                "it adds to the input of the model, and the lab trains what changes its layers",
                "name another, such as peft.LoraConfig",
            )
        if hasattr(tuner, "update_and_allocate") or config.peft_type == "XLORA":
            raise self._refusal(
                "it needs calls of its own during training", "name another, such as peft.LoraConfig"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise self._refusal("it acts after certain tokens only", "leave them out")
        for kinds, why in _REFUSED_INITS.items():
            if self._starts_from(kinds):
                start = self.init_args["init_lora_weights"]
                raise self._refusal(
                    f"init_lora_weights {start} {why}", "leave it out, or set pissa"
                )
        return config

    @property
    def changes_base(self) -> bool:
        """Return whether the base with its adapters off is another function than the base."""
        return self._starts_from(_FROM_BASE) or self.init_args.get("bias", "none") != "none"

    def check_quantization(self, quantization: str) -> None:
        """Refuse initial values that are split off from the base's weights, if it is quantised.

        Raises:
            RequestError: If there are any.
        """
        if quantization in ("nf4", "int8") and self._starts_from(_FROM_BASE):
            raise self._refusal(
                f"init_lora_weights {self.init_args['init_lora_weights']} changes the base's "
                f"weights, which are in {quantization}",
                "set model.quantization to bf16 or fp32",
            )

    def _starts_from(self, kinds: tuple[str, ...]) -> bool:
        return str(self.init_args.get("init_lora_weights", "")).lower().startswith(kinds)

    def _refusal(self, why: str, fix: str) -> RequestError:
        return RequestError(f"model.peft: {self.class_path}: {why.rstrip('.')}; {fix}.")


Adapters = Lora | Peft


def adapters_of(lora: Lora | None, peft: Mapping[str, Any] | None) -> Adapters | None:
    """Return the adapters that a config describes in one of two ways; None for none.

    Raises:
        RequestError: If it describes them in both, or names no class.
    """
    if peft is None:
        return lora
    if lora is not None:
        raise RequestError(
            "model.lora and model.peft both describe the adapters; set model.lora to null, or "
            "leave model.peft out."
        )
    others = sorted(peft.keys() - {"class_path", "init_args"})
    if others or not isinstance(peft.get("class_path"), str):
        raise RequestError(
            f"model.peft takes class_path and init_args, got {', '.join(others) or dict(peft)}; "
            "write {class_path: peft.LoraConfig, init_args: {r: 16}}."
        )
    return Peft(peft["class_path"], dict(peft.get("init_args") or {}))


def add_adapters(model: Any, adapters: Adapters, seed: int) -> Any:
    """Add adapters to a base, and freeze the base.

    Args:
        model: The base; its layers are changed in place.
        adapters: The adapters.
        seed: Seed of their initial values.

    Raises:
        RequestError: If they do not fit the base.
    """
    import_bitsandbytes()
    from peft import get_peft_model

    config = adapters.config()
    is_all = getattr(config, "target_modules", None) == "all-linear"
    if is_all and getattr(config, "exclude_modules", ()) is None:
        config.exclude_modules = _unadaptable(model) or None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except Exception as fault:  # whatever the many kinds of adapters raise
            why = _first_line(fault)
            if "meta" in why and next(model.parameters()).is_meta:
                why = "it cannot be built, and so not checked, without the base's weights"
            raise RequestError(
                f"{adapters.key} does not fit {type(model).__name__}: {why.rstrip('.')}; "
                "change it, or use model.lora."
            ) from fault
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise RequestError(
            f"{adapters.key} trains nothing of {type(model).__name__}; leave inference_mode out, "
            "or name other target_modules."
        )
    return adapted


def _unadaptable(model: Any) -> list[str]:
    """Return the linear layers on which an adapter would fail or do nothing."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and type(module).__module__.startswith("transformers.models")
        and "forward" in vars(type(module))  # routers that return more than a product
    ]
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):  # Mamba, whose kernels read weights
            found += [f"{name}.{part}" for part in ("x_proj", "dt_proj", "out_proj")]
    return found


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0][:300]
