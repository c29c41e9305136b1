package benchkit

import (
	"crypto/sha256"
	"io"
	"net"
	"os"
)

// What any program has to do that moves a file to another machine, and nothing else: no
// piece is chosen, asked for or announced. Benchmarks compare with it how fast the machine
// is.

// SendFile sends a file, with sendfile, to whoever connects next.
func SendFile(ln net.Listener, path string) error {
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(c, f)
	return err
}

// ReceiveFile reads size bytes, hashes them with SHA-256 and writes them to a file.
func ReceiveFile(c net.Conn, path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, h := make([]byte, 128<<10), sha256.New()
	for size > 0 {
		n, err := io.ReadFull(c, buf[:min(int64(len(buf)), size)])
		if err != nil {
			return err
		}
		h.Write(buf[:n])
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return f.Close()
}
