"""Coverage-guided fuzzing of payloads with atheris; run by hand, never by pytest.

    pip install atheris
    python -m tests.fuzz.fuzz_payload -max_total_time=180 [corpus folder] [libFuzzer options]

It begins with the payloads of `tests/coppice/wire/test_payload_fuzz.py` and demands what that file
does of each input: a payload that says the same when it is written again, or InvalidPayload, and
`check` and `decode` of one mind. Any other exception ends the run and leaves the input in a file.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

# Not a dependency, so not known to the type checker.
atheris = importlib.import_module("atheris")

with atheris.instrument_imports(include=["coppice.wire", "coppice.sparse"]):
    from benchmarks.fuzzing_payloads import SEEDS
    from tests.coppice.wire.test_payload_fuzz import survives


def main() -> None:
    """Fuzz until an input fails or the time that libFuzzer was given is over."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS):
            Path(folder, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder, "-max_len=2000"], survives)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
