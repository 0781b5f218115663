"""Say once what planning warns about, however many cells give the reason."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from typing_extensions import override

from sft_lab.terminal import counted

_log = logging.getLogger("sft_lab")


class _Collector(logging.Handler):
    """Keeps each warning with the cells that gave it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cell = 0
        self.cells: dict[str, set[int]] = {}

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.cells.setdefault(record.getMessage(), set()).add(self.cell)


@contextmanager
def warnings_by_cell() -> Iterator[Callable[[int], None]]:
    """Hold back warnings and give each of them once, with its number of cells.

    Yields:
        A function to call with the number of the cell that is planned next.
    """
    collector = _Collector()

    def begin(cell: int) -> None:
        collector.cell = cell

    propagates = _log.propagate
    _log.addHandler(collector)
    _log.propagate = False
    try:
        yield begin
    finally:
        _log.propagate = propagates
        _log.removeHandler(collector)
        for message, cells in collector.cells.items():
            _log.warning("%s (%s)", message, counted(len(cells), "cell"))
