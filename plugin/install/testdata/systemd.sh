# Run by TestSystemd in mount, process and cgroup namespaces of its own: a real
# systemd (as a user manager, which needs no machine), a real containerd and the
# capelin program, through an agent's life. $1: a directory for everything, with bin/.
set -u
top=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/u /run/home/.config/systemd
chmod 700 /run/u
mount -t proc proc /proc
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# The host's directories, with nothing of the host in them; those that it lacks are
# made in copies of their parents.
for d in /etc /usr/local /var/lib; do
  mkdir -p "$top/over$d/up" "$top/over$d/work"
  mount -t overlay -o "lowerdir=$d,upperdir=$top/over$d/up,workdir=$top/over$d/work" overlay $d
done
for d in /etc/containerd /etc/capelin /etc/systemd/system /usr/local/bin /var/lib/containerd /var/lib/capelin; do
  mkdir -p $d
  mount -t tmpfs tmpfs $d
done
cp "$top"/bin/* /usr/local/bin/
cp /usr/bin/systemctl "$top/systemctl"
printf '#!/bin/sh\nexport XDG_RUNTIME_DIR=/run/u\nexec %s/systemctl --user "$@"\n' "$top" > "$top/user-systemctl"
chmod +x "$top/user-systemctl"
mount --bind "$top/user-systemctl" /usr/bin/systemctl
ln -s /etc/systemd/system /run/home/.config/systemd/user
export XDG_RUNTIME_DIR=/run/u HOME=/run/home

# A user manager cannot protect file systems.
mkdir /etc/systemd/system/capelin-agent.service.d
printf '%s\n' '[Service]' ProtectSystem=no ProtectHome=no PrivateTmp=no RestrictAddressFamilies= NoNewPrivileges=no OOMScoreAdjust=0 \
	> /etc/systemd/system/capelin-agent.service.d/test.conf
printf '[Service]\nType=notify\nExecStart=/usr/local/bin/containerd\n' > /etc/systemd/system/containerd.service
printf '%s\n' 'version = 3' \
	'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]' \
	> /etc/containerd/config.toml
/lib/systemd/systemd --user > "$top/log" 2>&1 &
for i in $(seq 50); do systemctl list-units > /dev/null 2>&1 && break; sleep 0.1; done

store() { ctr plugins ls 2> /dev/null | awk '$1 == "io.containerd.content.v1" { print $2 }'; }
state() { systemctl is-active "$1"; }
# check WHAT COMMAND WANT: the command prints that, within half a minute.
check() {
  for i in $(seq 150); do
    got=$(eval "$2" 2> /dev/null)
    [ "$got" = "$3" ] && return
    sleep 0.2
  done
  echo "FAIL: $1: $2 says '$got', not '$3'"
}
back() {
  check "$1" store content
  check "$1" 'state containerd' active
  check "$1" 'ls /etc/containerd/conf.d' capelin.toml.disabled
  check "$1" "grep -c '$2' /var/lib/capelin/fallback" 1
}
forth() {
  check "$1" store capelin
  check "$1" 'state capelin-agent' active
  check "$1" 'ls /etc/containerd/conf.d' capelin.toml
  check "$1" 'ls /var/lib/capelin' install.json
}

systemctl start containerd
check start store content
capelin agent install --restart-containerd || echo "FAIL: install"
forth install
capelin agent doctor || echo "FAIL: doctor"

systemctl kill -s KILL capelin-agent
check 'killed once' 'state capelin-agent' active
forth 'killed once'

echo 'nonsense = 1' >> /etc/capelin/agent.toml
systemctl kill -s KILL capelin-agent
back 'cannot start' 'failed 10 times'
systemctl restart containerd
back 'containerd restarted' 'failed 10 times'
systemctl start capelin-agent
check 'started by hand' 'state capelin-agent' failed
capelin agent doctor > /dev/null 2>&1 && echo "FAIL: doctor is content with a fallback"
capelin agent fallback --undo 2> /dev/null && echo "FAIL: undone with a broken agent"
back 'still broken' 'failed 10 times'
sed -i /nonsense/d /etc/capelin/agent.toml
capelin agent fallback --undo || echo "FAIL: undo"
forth undone

for i in $(seq 11); do systemctl restart capelin-agent 2> /dev/null; done
forth 'restarted too often'

rm /usr/local/bin/capelin
systemctl kill -s KILL capelin-agent
back 'no program' 'did not run'
cp "$top/bin/capelin" /usr/local/bin/
capelin agent fallback --undo || echo "FAIL: undo"
forth 'undone again'

capelin agent uninstall --restart-containerd || echo "FAIL: uninstall"
check uninstalled store content
check uninstalled 'state capelin-agent' inactive
check uninstalled 'find /etc/systemd/system /etc/capelin /var/lib/capelin -name "*capelin*" -type f' ''
echo DONE
