"""Runs an experiment by its name, and lists them: python -m experiments [NAME [--toy] ...]."""

from __future__ import annotations

import ast
import importlib
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def experiments() -> dict[str, str]:
    """Returns the experiments, each with the first line of what its run.py says of itself."""
    found = {}
    for file in sorted(HERE.glob("*/run.py")):
        words = ast.get_docstring(ast.parse(file.read_text())) or ""
        found[file.parent.name] = words.splitlines()[0] if words else ""
    return found


def main() -> None:
    """Hands the arguments on to the experiment that the first of them names."""
    found = experiments()
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name not in found:
        if name not in (None, "-h", "--help"):
            sys.exit(f"there is no experiment {name!r}; there are {', '.join(found)}")
        print("python -m experiments NAME [--toy] [options]; NAME --help lists the options\n")
        for folder, line in found.items():
            print(f"  {folder:28} {line}")
        return
    rest = sys.argv[2:]
    if "--toy" in rest and not any(part.startswith("--output") for part in rest):
        rest += [
            "--output",
            str(Path(tempfile.mkdtemp(prefix="experiment-")) / "results.json"),
        ]  # never what is committed
    sys.argv = [f"python -m experiments {name}", *rest]
    importlib.import_module(f"experiments.{name}.run").main()


if __name__ == "__main__":
    main()
