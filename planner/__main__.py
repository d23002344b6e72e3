"""The ``planner`` command: as a console script and as ``python -m planner``."""

from __future__ import annotations

import gc
import sys

# A command makes many small objects that live to its end: looking for cycles among them every 700 new ones,
# as Python does, is a tenth of its time.
OBJECTS_BETWEEN_COLLECTIONS = 20_000


def main() -> None:
    """Run the command line; Ctrl-C while its modules still load is an exit code too, not a traceback."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from planner.cli.app import main as run_and_exit

        run_and_exit()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
