"""`python -m benchmarks list | run SCENARIO`: scenarios that measure the system as it is used."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

#: Each is a module of this package with `DESCRIPTION`, `add_arguments(parser)` and
#: `run(arguments) -> list of cases`, which prints its table itself.
SCENARIOS = (
    "coordination",
    "device-memory",
    "fashion",
    "faults",
    "fuzzing",
    "held-classes",
    "kernels",
    "memory",
    "pace",
    "poisoning",
    "prunefl",
    "prunefl-kernels",
    "prunefl-wire",
    "wire",
)


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the scenarios, a line each")
    run = commands.add_parser("run", help="run one scenario")
    scenarios = run.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    modules = {
        name: importlib.import_module(f"benchmarks.{name.replace('-', '_')}") for name in SCENARIOS
    }
    for name, module in modules.items():
        scenario = scenarios.add_parser(name, help=module.DESCRIPTION)
        scenario.add_argument(
            "--json", type=Path, metavar="FILE", help="also write the cases as a JSON list"
        )
        module.add_arguments(scenario)
    arguments = parser.parse_args()
    if arguments.command == "list":
        for name, module in modules.items():
            print(f"{name:14}{module.DESCRIPTION}")
        return 0
    cases = modules[arguments.scenario].run(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(cases, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
