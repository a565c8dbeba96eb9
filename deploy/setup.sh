#!/usr/bin/env bash
# Bring .venv to what a make target needs: torch first, then this project with the given extras.
# Does nothing when that is already so.   usage: deploy/setup.sh server,dev
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=${1//,/ }
python=${PYTHON:-python3}
stamp=.venv/installed

say() {
    if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then printf '\033[2m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi
}
fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# What is installed: the state of the files that decide it, the compiler that it was built with (if
# it finds its headers), and the extras so far.
compiler() { printf '#include <string.h>\n' | ${CC:-cc} -x c -fsyntax-only - 2>/dev/null && echo "${CC:-cc}"; }
key=$({ pwd && compiler || true; cat pyproject.toml setup.py coppice/kernels/*.c deploy/setup.sh; } | sha256sum | cut -d' ' -f1)
installed_key='' extras=''
if [ -x .venv/bin/python ] && [ -f "$stamp" ]; then
    { read -r installed_key && read -r extras; } <"$stamp" || true
fi
for extra in $wanted; do
    case " $extras " in *" $extra "*) ;; *) extras="${extras:+$extras }$extra" installed_key='' ;; esac
done
[ "$installed_key" != "$key" ] || exit 0

command -v "$python" >/dev/null ||
    fail "Python is missing ($python); install it: sudo apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or later is needed, and $python is $("$python" -c 'import platform; print(platform.python_version())'); install a later one (Debian 12 and Ubuntu 24.04 have it) and name it: make PYTHON=python3.11 …"
"$python" -c 'import sys; sys.exit(sys.maxsize < 2**32)' ||
    fail "a 64-bit Python is needed: there is no PyTorch for 32 bits; on a Raspberry Pi install the 64-bit system"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Python cannot make virtual environments here; install what is missing: sudo apt-get install ${python##*/}-venv"

started=$SECONDS
pip() { .venv/bin/python -m pip -qq --disable-pip-version-check "$@"; }

if ! [ -x .venv/bin/python ] || ! pip --version >/dev/null 2>&1; then
    say 'creating .venv'
    "$python" -m venv --clear .venv || fail ".venv could not be created; the reason stands above"
fi
rm -f "$stamp"
if ! pip show torch >/dev/null 2>&1; then
    say 'installing torch (200 MB as CPU build, several GB as CUDA build) …'
    case $(uname -m) in
    aarch64) torch='torch>=2.6,<2.10' ;;
    *) torch='torch==2.13.0' ;;
    esac
    pip install "$torch" numpy || fail "torch could not be installed; pip's reason stands above"
    grep -q '^cuda.*= None' .venv/lib/python3*/site-packages/torch/version.py || say \
        'note: pip offered only the CUDA build of torch, which is larger. It works; README.md says how to get the CPU build.'
fi
say "installing coppice with the extras ${extras// /, } …"
pip install -e ".[${extras// /,}]" || fail "coppice could not be installed; pip's reason stands above"
printf '%s\n%s\n' "$key" "$extras" >"$stamp"
say "ready after $((SECONDS - started)) s"
