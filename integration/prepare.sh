#!/bin/sh
# Checks what `make demo` and `make test` need, and installs Debian's runc if it
# is missing. Usage: prepare.sh demo|test
set -eu
if [ "$(uname -s)" != Linux ] || [ "$(id -u)" != 0 ]; then
	echo "make $1 needs root on Linux: it makes network namespaces and runs containerd with overlayfs and runc" >&2
	exit 1
fi
command -v runc >/dev/null && exit 0
if ! command -v apt-get >/dev/null; then
	echo "make $1 needs runc in PATH (this is not Debian: install it, then run this again)" >&2
	exit 1
fi
echo "installing runc"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends runc; } >"$log" 2>&1; then
	tail -n 5 "$log" >&2
	echo "could not install Debian's runc, which make $1 needs" >&2
	exit 1
fi
