#!/bin/sh
# Checks what `make demo`, `make test`, `make bench-pull`, `make bench-storages` and `make stress` need,
# and installs Debian's packages that are missing. Usage: prepare.sh demo|test|bench|storages|stress
set -eu
if [ "$(uname -s)" != Linux ] || [ "$(id -u)" != 0 ]; then
	echo "make $1 needs root on Linux: it makes network namespaces and runs containerd with overlayfs and runc" >&2
	exit 1
fi
missing=
command -v runc >/dev/null || missing="$missing runc"
[ -x /usr/sbin/dockerd ] || [ -x /usr/bin/dockerd ] || missing="$missing docker.io"
[ "$1" != test ] || command -v skopeo >/dev/null || missing="$missing skopeo"
[ "$1" != test ] || command -v podman >/dev/null || missing="$missing podman"
[ "$1" != test ] || command -v buildah >/dev/null || missing="$missing buildah"
[ "$1" != test ] || [ -x /usr/lib/systemd/systemd ] || missing="$missing systemd"
[ "$1" != test ] || command -v node >/dev/null || missing="$missing nodejs"
[ "$1" != test ] || command -v npm >/dev/null || missing="$missing npm"
[ "$1" != test ] || command -v mkfs.erofs >/dev/null || missing="$missing erofs-utils"
[ "$1" != test ] || [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
[ "$1" != test ] || command -v java >/dev/null || missing="$missing default-jre-headless"
[ "$1" != test ] || command -v mvn >/dev/null || missing="$missing maven"
[ "$1" != test ] || command -v kinit >/dev/null || missing="$missing krb5-user"
[ "$1" != test ] || [ -x /usr/sbin/krb5kdc ] || missing="$missing krb5-kdc"
[ "$1" != test ] || [ -x /usr/sbin/kadmin.local ] || missing="$missing krb5-admin-server"
[ "$1" != bench ] || command -v igzip >/dev/null || missing="$missing isal"
[ "$1" != storages ] || [ -x /usr/bin/aws ] || missing="$missing awscli"
[ "$1" != stress ] || command -v stress-ng >/dev/null || missing="$missing stress-ng"
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
	echo "make $1 needs$missing (this is not Debian: install them, then run this again)" >&2
	exit 1
fi
echo "installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Nothing that comes with them is to be started: the tests start it themselves.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	trap 'rm -f "$log" $policy' EXIT
fi
# shellcheck disable=SC2086
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 5 "$log" >&2
	echo "could not install Debian's$missing, which make $1 needs" >&2
	exit 1
fi
