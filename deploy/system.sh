#!/usr/bin/env bash
# Make sure that what the tests need of the system is there: a Chromium for the dashboard, and for
# the kernels a C compiler, one for arm64 and an emulator; and a way to set clocks wrong. Installs
# Debian's packages when allowed.
set -euo pipefail

missing=() wanted=()
need() { # a package, and what is wrong without it
    missing+=("$1") wanted+=("$2")
}

have_chromium() {
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null && return
    done
    return 1
}
compiles() { printf '#include <string.h>\nint x;\n' | cc -x c -c -o /dev/null - 2>/dev/null; }

have_chromium || need chromium 'Chromium, to test the dashboard'
emulates() { command -v aarch64-linux-gnu-gcc && { command -v qemu-aarch64-static || command -v qemu-aarch64; }; }
compiles || need 'gcc libc6-dev' 'a C compiler, to build the kernels'
[ "$(uname -m)" = aarch64 ] || emulates >/dev/null ||
    need 'gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static' 'a compiler and an emulator for arm64, to try the kernels on it'
ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 ||
    need faketime 'libfaketime, to set the clock of a device wrong'
[ ${#missing[@]} -gt 0 ] || exit 0

fail() {
    printf 'the tests need %s; install it: sudo apt-get install %s\n' "$(IFS=';' && echo "${wanted[*]}")" "${missing[*]}" >&2
    exit 1
}
command -v apt-get >/dev/null || fail
if [ "$(id -u)" = 0 ]; then
    root=''
elif sudo -n true 2>/dev/null; then
    root=sudo
else
    fail
fi

echo "installing ${missing[*]} with apt-get (100 to 200 MB) …"
apt=($root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
"${apt[@]}" update || true
# Unquoted: a need may be of several packages.
"${apt[@]}" install -y --no-install-recommends ${missing[*]} >/dev/null || fail
