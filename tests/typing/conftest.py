"""The samples are programs for type checkers, and are run by a test: nothing for pytest to collect."""

collect_ignore_glob = ["samples/*"]
