"""Compiles the sparse kernels; where there is no C compiler, Coppice is installed without them."""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCE = "coppice/kernels/sparse_kernels.c"
#: What a library says it was compiled from: one of another source would read other arrays than it
#: is given (coppice/kernels/library.py).
CHECKSUM = zlib.crc32(Path(SOURCE).read_bytes()) >> 1

#: Files of coppice/kernels/ and what the compiler may use for them; which one a machine loads is
#: decided there (coppice/kernels/library.py).
VARIANTS: dict[str, list[str]] = {"_baseline": []}
# deploy/wheels.sh compiles for another machine than this one.
if os.environ.get("COPPICE_MACHINE", platform.machine()) == "x86_64":
    VARIANTS["_avx2"] = ["-mavx2", "-mfma"]


class BuildLibraries(build_ext):
    """Plain shared libraries: no module of Python, so the same for all its versions."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class AnyPython(bdist_wheel):
    """A wheel for this platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"coppice.kernels.{name}",
            [SOURCE],
            # Not linked with -fopenmp: the library takes the OpenMP runtime that torch has loaded.
            extra_compile_args=["-O3", "-g0", "-std=gnu99", "-fopenmp", *flags],
            define_macros=[("COPPICE_SOURCE", str(CHECKSUM))],
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPython},
)
