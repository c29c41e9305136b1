package file

import (
	"strings"
	"testing"
)

// A mount of NFS is coherent only if nothing is remembered and locks are the server's.
func TestCached(t *testing.T) {
	const mounts = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
97 22 0:51 / /mnt/a rw,relatime shared:2 - nfs4 server:/a rw,vers=4.2,rsize=1048576,hard,proto=tcp,local_lock=none,addr=10.0.0.1
98 22 0:52 / /mnt/b rw,relatime - nfs4 server:/b rw,sync,vers=4.2,noac,lookupcache=none,local_lock=none
99 22 0:53 / /mnt/c rw,relatime - nfs server:/c rw,vers=3,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,lookupcache=none,local_lock=all
100 22 0:54 / /mnt/d rw,relatime - nfs server:/d rw,vers=3,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,lookupcache=none
101 22 0:55 / /mnt/e rw,relatime - nfs server:/e rw,noac,lookupcache=positive
102 22 0:56 / /mnt/f rw,relatime - nfs server:/f rw,nolock,noac,lookupcache=none
103 22 0:57 / /mnt/g rw
`
	for device, want := range map[string]string{
		"0:51": "no noac", "0:52": "", "0:53": "locks are", "0:54": "", "0:55": "no lookupcache=none",
		"0:56": "locks are", "0:57": "no noac", "0:58": "no noac",
	} {
		if got := cached(optionsOf(mounts, device)); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", device, got, want)
		}
	}
	if err := Coherent(t.TempDir()); err != nil {
		t.Error(err)
	}
	if Coherent("/nobody/has/it") == nil {
		t.Error("there is no such directory")
	}
}
