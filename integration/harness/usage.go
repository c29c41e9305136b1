package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// userHz is the unit of /proc/<pid>/stat: 10 ms, on all of Linux.
const userHz = 100

// CPU returns the processor time, user and system, of all processes of the host since
// it was started, those that have ended included. What the kernel does on its own
// threads (writing to disks, most of receiving) belongs to nobody.
func (h *Host) CPU() (time.Duration, error) {
	mine, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", h.pid))
	if err != nil {
		return 0, fmt.Errorf("host %s is gone: %w", h.Name, err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, p := range procs {
		if ns, err := os.Readlink(p + "/ns/pid"); err != nil || ns != mine {
			continue // another's, or it has just ended: then its parent has its time
		}
		b, err := os.ReadFile(p + "/stat")
		if err != nil {
			continue
		}
		n, err := statTicks(b)
		if err != nil {
			return 0, fmt.Errorf("%s/stat: %w", p, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHz, nil
}

// ProcessCPU returns the processor time, user and system, of one process and of its
// children that have ended.
func ProcessCPU(pid int) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := statTicks(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return time.Duration(n) * time.Second / userHz, nil
}

// statTicks returns the processor time in the contents of a /proc/<pid>/stat.
func statTicks(b []byte) (ticks int64, err error) {
	// The name, in parentheses, may have anything in it.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	for _, v := range f[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return ticks, nil
}

// PeakRSS returns the most memory that the process had resident, in bytes.
func (p *Process) PeakRSS() (int64, error) {
	_, peak, err := Resident(p.PID())
	return peak, err
}

// Resident returns how much memory a process has resident, and had at most, in bytes.
func Resident(pid int) (now, peak int64, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		var to *int64
		switch k {
		case "VmRSS":
			to = &now
		case "VmHWM":
			to = &peak
		default:
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", path, err)
		}
		*to = n << 10
	}
	if peak == 0 {
		return 0, 0, fmt.Errorf("%s has no VmHWM", path)
	}
	return now, peak, nil
}
