"""The Hugging Face hub: found absent at once, instead of after minutes of retries."""

import functools
import re
from pathlib import Path


def is_hub_name(name: str) -> bool:
    """Say whether a name that is no local path could be one on the hub.

    >>> is_hub_name("openai/gsm8k"), is_hub_name("../data/math.jsonl")
    (True, False)
    """
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None and not Path(name).exists()


@functools.cache
def settle_offline() -> None:
    """Where the hub does not answer, switch its libraries to their caches for this process.

    Each of them would find out by itself, file by file and with five retries each.
    """
    # All three take a second or more to import, and most runs name local files only.
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception:  # whatever the HTTP library raises, nobody answered
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
