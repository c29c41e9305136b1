package config

import (
	"net"
	"strconv"
	"unicode/utf8"
)

// IsListen reports whether one can listen on addr as far as it shows: host:port, of which the host may be empty, and
// the port be a service's name.
func IsListen(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil
}

// IsAddress reports whether one can connect to addr as far as it shows: host:port, with a port of 1 to 65535.
func IsAddress(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && host != "" && n > 0
}

// IsText reports whether s is a text that fits into a line of a log, of a message and of a certificate:
// UTF-8 without control characters.
func IsText(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}
