#!/usr/bin/env bash
# Wheels with compiled kernels, for any Python on x86-64 and arm64 Linux of the last ten years, into
# dist/. Each machine's needs its compiler: gcc-x86-64-linux-gnu, gcc-aarch64-linux-gnu.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

wheel() { # machine
    compiler=$1-linux-gnu-gcc
    command -v "$compiler" >/dev/null || {
        echo "$compiler is missing; install it: sudo apt-get install gcc-${1/_/-}-linux-gnu libc6-dev" >&2
        exit 1
    }
    echo "building for $1 …"
    rm -rf build
    COPPICE_MACHINE=$1 CC=$compiler LDSHARED="$compiler -shared" "$python" -m pip -q \
        --disable-pip-version-check wheel --no-deps --wheel-dir dist . \
        "--config-settings=--build-option=--plat-name=manylinux_2_17_$1"
    rm -rf build
}

rm -rf dist
wheel x86_64
wheel aarch64
"$python" - dist/*.whl <<'CHECK'
"""All variants are there, for the machine of the wheel's name, and ask for no newer glibc."""
import re
import sys
import zipfile

# e_machine of their ELF headers, and the variants.
MACHINES = {"x86_64": (62, {"_baseline", "_avx2"}), "aarch64": (183, {"_baseline"})}
for path in sys.argv[1:]:
    (machine,) = [name for name in MACHINES if path.endswith(f"_{name}.whl")]
    code, wanted = MACHINES[machine]
    with zipfile.ZipFile(path) as wheel:
        found = {n.split("/")[-1][:-3]: wheel.read(n) for n in wheel.namelist() if n.endswith(".so")}
    if found.keys() != wanted:
        sys.exit(f"{path} has {sorted(found) or 'no kernels'}, not {sorted(wanted)}")
    for name, data in found.items():
        glibc = re.findall(rb"GLIBC_(\d+)\.(\d+)", data)
        newest = max((tuple(map(int, version)) for version in glibc), default=(2, 0))
        if int.from_bytes(data[18:20], "little") != code or newest > (2, 17):
            sys.exit(f"{path}: {name} is for another machine, or needs glibc {newest}")
    print(path, *sorted(found))
CHECK
