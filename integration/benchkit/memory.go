package benchkit

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// WarmMemory touches n bytes of free memory and gives them back, for what is about to take
// them. A virtual machine may report its free pages to its host (virtio-balloon), which takes
// them away: then whoever touches one first waits until the host has found another, which
// costs seconds of processor time per GiB, more than all that is measured.
func WarmMemory(n int64) error {
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("taking %d bytes of memory: %w", n, err)
	}
	return unix.Munmap(b)
}
