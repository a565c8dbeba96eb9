#!/usr/bin/env bash
# Make sure that there is a Chromium, in which the dashboard is tested; install Debian's when allowed.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done

by_hand='install it: sudo apt-get install chromium'
command -v apt-get >/dev/null || {
    echo 'the tests need Chromium to test the dashboard; install it and put it on PATH' >&2
    exit 1
}
if [ "$(id -u)" = 0 ]; then
    root=''
elif sudo -n true 2>/dev/null; then
    root=sudo
else
    echo "the tests need Chromium to test the dashboard; $by_hand" >&2
    exit 1
fi

echo 'installing Chromium with apt-get (about 100 MB) …'
apt=($root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
"${apt[@]}" update || true
"${apt[@]}" install -y --no-install-recommends chromium >/dev/null || {
    echo "Chromium could not be installed, the reason stands above; $by_hand" >&2
    exit 1
}
