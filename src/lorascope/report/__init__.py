"""A study as one HTML page: the answer first, its evidence, and all that was recorded, from the store alone.

``findings`` reads the store; ``answer`` says what it shows; ``sections``, ``games``, ``training``, ``examples`` and ``record``
lay it out in ``blocks``; ``charts`` draws on ``svg``; ``words`` writes numbers and text; ``page`` puts it together. Floor:
above ``search`` and ``effects``, below the command line.
"""

from lorascope.report.page import MOST_BYTES, REPORT_FILE, report_page, write_report

__all__ = ["MOST_BYTES", "REPORT_FILE", "report_page", "write_report"]
