"""Print the command that stands in the README under `<!-- command: NAME -->`."""

import re
import sys
from pathlib import Path


def readme_command(text: str, name: str) -> str:
    found = re.findall(rf"<!-- command: {re.escape(name)} -->\s*```\w*\n(.*?)```", text, re.DOTALL)
    if len(found) != 1:
        sys.exit(f"README.md: expected one fenced command marked '{name}', found {len(found)}")
    command = found[0].strip()
    # `bash -e` overlooks a failing `a && b` unless it is the last command.
    if "\n" in command.replace("\\\n", ""):
        sys.exit(f"README.md: '{name}' must be a single command; join its lines with &&")
    return command


if __name__ == "__main__":
    print(readme_command(Path("README.md").read_text(encoding="utf-8"), sys.argv[1]))
