"""The command line: ``app`` holds the commands, ``progress`` and ``tables`` what people see, ``demo`` the first run.

Floor: the top. Importing it loads no torch.
"""

from lorascope.cli.app import main

__all__ = ["main"]
