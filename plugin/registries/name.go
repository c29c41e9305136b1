package registries

import "net"

// A registry's name is its host, and its port where that is known: containerd does not tell.

// split returns the parts of a name; port is empty if it is not known.
func split(name string) (host, port string) {
	if host, port, err := net.SplitHostPort(name); err == nil {
		return host, port
	}
	return name, ""
}

// Same reports whether two names may be one registry's.
func Same(a, b string) bool {
	hostA, portA := split(a)
	hostB, portB := split(b)
	return hostA == hostB && (portA == portB || portA == "" || portB == "")
}
