"""The controls that a question may ask for: arms that leave one explanation of a finding."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

Control = Literal[
    "equal_steps", "equal_tokens", "fresh_rows", "stage_order", "optimizer", "equal_rate"
]
"""A control by name.

``equal_steps``: a source alone, or a smaller amount, trained for as many optimizer steps as what it
is compared with. ``equal_tokens``: the same with as many tokens. ``fresh_rows``: replayed rows
replaced by as many further rows of the general source, at equal steps. ``stage_order``: stages in
reversed order. ``optimizer``: moments kept where the arm starts later stages afresh, and the
reverse. ``equal_rate``: no arm of its own; arms that train a source at another peak rate than the
others are refused.
"""

CONTROLS: tuple[Control, ...] = get_args(Control)

PHRASES: Mapping[str, str] = {
    "equal_steps": "at equal steps",
    "equal_tokens": "at equal tokens",
    "fresh_rows": "with fresh general rows in place of the replayed ones",
    "stage_order": "with its stages reversed",
    "optimizer": "with the optimizer handed over the other way",
}
"""The kind of a control, which follows the name of its arm."""

OF_MIXING: Sequence[Control] = ("equal_steps", "equal_tokens")
"""A finding about mixing needs one of these: a mixture takes more steps than its parts."""

OF_REPLAY: Sequence[Control] = ("fresh_rows",)
"""A finding about replay needs this: replayed rows add steps, whatever they teach."""
