"""The command line: ``app`` holds the commands.

``planning`` and ``study`` carry them out, ``progress`` and ``tables`` hold what people see, ``demo`` the first run.
Floor: the top. Importing it loads no torch.
"""

from lorascope.cli.app import main

__all__ = ["main"]
