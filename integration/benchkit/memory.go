package benchkit

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reportedBlock is the least free memory that Linux reports to a hypervisor.
const reportedBlock = 2 << 20

// WarmMemory touches n bytes of free memory, and gives all but a page of every 2 MiB
// back, for what is about to take them. A virtual machine may report free blocks of that
// size to its host (virtio-balloon's free page reporting), which takes them away within
// seconds: then whoever touches one first waits until the host has found another, which
// costs seconds of processor time per GiB, more than all that is measured. Those with a
// page in use are not free, and small allocations are taken from them first.
//
// The pages, a 512th of n, are kept for as long as the process lives.
func WarmMemory(n int64) error {
	n = (n + reportedBlock - 1) / reportedBlock * reportedBlock
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("taking %d bytes of memory: %w", n, err)
	}
	page := os.Getpagesize()
	for i := 0; i < len(b); i += reportedBlock {
		if err := unix.Madvise(b[i+page:i+reportedBlock], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("giving back memory: %w", err)
		}
	}
	return nil
}
