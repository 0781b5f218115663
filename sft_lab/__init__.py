"""sft_lab: what does each source of fine-tuning data do to each ability of a language model?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_lab.api import LoadedRun, compare, evaluate, fit, load_run

__all__ = ["LoadedRun", "compare", "evaluate", "fit", "load_run"]


def __getattr__(name: str) -> Any:
    """Import the Python API on first use: it loads torch, which most imports do not need."""
    if name in __all__:
        from sft_lab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the Python API, for completion in notebooks."""
    return sorted(__all__)
