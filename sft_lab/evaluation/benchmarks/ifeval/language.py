"""Detect the language of a text with langdetect."""

from functools import lru_cache
from pathlib import Path

from langdetect import LangDetectException
from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, or None if it has no letters.

    The official checker uses langdetect too, without a seed: on a few texts, most of them short or
    all in capitals, its answer varies. Here the seed is 0 and the profiles are read in a fixed
    order, so the answer is always the same.

    >>> detect_language("Het regent al de hele dag.")
    'nl'
    >>> print(detect_language("1 + 1 = 2"))
    None
    """
    detector = _factory().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:  # "No features in text."
        return None


@lru_cache
def known_languages() -> frozenset[str]:
    """Return the codes that ``detect_language`` can return."""
    return frozenset(path.name for path in _profiles())


@lru_cache
def _factory() -> DetectorFactory:
    factory = DetectorFactory()
    factory.set_seed(0)
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in _profiles()])
    return factory


def _profiles() -> list[Path]:
    # langdetect itself reads them in the folder's order, which differs between file systems.
    return sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if path.is_file())
