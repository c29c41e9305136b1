package durable

import (
	"os"
	"strings"
	"sync"
)

// BootID is the kernel's name of this boot of the machine; empty if it has none. What a process wrote and did not sync is
// there for those after it, until the machine goes down: then any part of it may be.
func BootID() string { return bootID() }

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
