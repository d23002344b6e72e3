"""Print one of the README's two commands: ``plan`` (set up and plan) or ``test`` (set up and test).

The commands are the fenced blocks behind the markers ``<!-- command:plan -->`` and
``<!-- command:test -->``; a missing block is an error, so the README cannot drift from CI.
"""

import re
import sys
from pathlib import Path


def main() -> int:
    name = sys.argv[1]
    text = Path(__file__).resolve().parent.parent.joinpath("README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- command:{name} -->\s*```\w*\n(.*?)```", text, re.DOTALL)
    if found is None:
        print(f"README.md has no block behind <!-- command:{name} -->", file=sys.stderr)
        return 1
    print(found.group(1).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
