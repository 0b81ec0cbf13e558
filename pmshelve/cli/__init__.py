"""The command line: ``python -m pmshelve`` with one of the commands of this package."""

from __future__ import annotations

from pmshelve.cli.main import main

__all__ = ["main"]
