"""``python -m pmshelve``: see `pmshelve.cli.main`."""

from __future__ import annotations

import sys

from pmshelve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
