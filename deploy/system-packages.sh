#!/bin/sh
# Installs the Debian or Ubuntu packages that are missing on this machine.
#
# Usage: deploy/system-packages.sh build|test|interop|bench...
#   build  what compiling needs; test  what the tests need too; interop  what the tests with real SDKs need too;
#   bench  what the benchmarks compare with
# PYTHON (default python3) is the interpreter that will build. Uses sudo when not root.
set -eu

python=${PYTHON:-python3}
missing=""

# Adds PACKAGE to the list unless COMMAND succeeds: what is there by other means is not installed again.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

program() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }
python_headers() { "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'; }
libc_headers() { test -e /usr/include/stdio.h || test -e /usr/include/x86_64-linux-gnu/stdio.h; }
sanitizers() { echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | clang -fsanitize=fuzzer,address -x c - -o /dev/null; }

for purpose in "$@"; do
    case $purpose in
    build)
        need python3 program "$python"
        need python3-venv "$python" -c 'import ensurepip, venv'
        need python3-dev python_headers
        need gcc program gcc
        need libc6-dev libc_headers
        ;;
    test)
        need apache2-utils program ab
        need clang program clang
        need libclang-rt-dev sanitizers
        need curl program curl
        need wrk program wrk
        ;;
    interop)
        need default-jdk-headless program javac
        need maven program mvn
        need nodejs program node
        need npm program npm
        ;;
    bench)
        need haproxy program haproxy
        need iproute2 program ip
        need nginx-light program nginx
        need libnginx-mod-stream test -e /usr/lib/nginx/modules/ngx_stream_module.so
        ;;
    *)
        echo "usage: $0 build|test|interop|bench..." >&2
        exit 2
        ;;
    esac
done

if [ -z "$missing" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "$0: install these yourself, as there is no apt-get here (Debian's names):$missing" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo"
fi
echo "installing system packages:$missing"
$sudo apt-get update -q
# RUNLEVEL=1 keeps the packages' own services (haproxy, nginx) from being started.
# shellcheck disable=SC2086  # one word per package
$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-install-recommends $missing
