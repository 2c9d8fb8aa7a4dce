"""``python -m lorascope``."""

from lorascope.cli import main

if __name__ == "__main__":
    main()
