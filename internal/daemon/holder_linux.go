package daemon

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// holder says who listens on the port of an address, host:port, as far as /proc shows it; "" if it does not.
func holder(addr string) string {
	inode := listening(addr)
	if inode == "" {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != "socket:["+inode+"]" {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) {
			return "this process itself"
		}
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return ""
		}
		return fmt.Sprintf("another process, %s (pid %s),", bytes.TrimSpace(name), pid)
	}
	return ""
}

// listening returns the inode of the socket that keeps others from listening on an address.
func listening(addr string) (inode string) {
	for _, path := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan() && inode == ""; {
			const local, state, inodeAt, listen = 1, 3, 9, "0A"
			if row := strings.Fields(s.Text()); len(row) > inodeAt && row[state] == listen && Overlap(endpoint(row[local]), addr) {
				inode = row[inodeAt]
			}
		}
		f.Close()
	}
	return inode
}

// endpoint returns an address of /proc/net/tcp as host:port; "" if it is none. There are words of four bytes
// in the machine's order, which is little-endian wherever this runs.
func endpoint(text string) string {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return ""
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return ""
	}
	return net.JoinHostPort(ip.String(), strconv.FormatUint(n, 10))
}
