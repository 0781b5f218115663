"""The protocol that every section of a report follows, shipped or a study's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a study's config names sections; reading it draws nothing
    from sft_lab.report.context import Context
    from sft_lab.report.page import Section


class ReportSection(ABC):
    """A section of a report, built from a study's results.

    A study's config adds its own by ``class_path``::

        report:
          sections:
            - class_path: mine.CostSection
              init_args: {currency: EUR}
    """

    @abstractmethod
    def build(self, context: Context) -> Section | None:
        """Return the section, or None if the study has nothing to show there.

        Args:
            context: The study's results and abilities, its measurements, and the sections built so
                far. Comparisons added to ``context.comparisons`` appear in ``comparisons.csv``.
        """
