"""Lorascope against its peers on the same data, side by side: ``make bench``. See README.md."""
