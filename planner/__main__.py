"""The ``planner`` command: as a console script and as ``python -m planner``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while its modules still load is an exit code too, not a traceback."""
    try:
        from planner.cli.app import main as run_and_exit

        run_and_exit()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
