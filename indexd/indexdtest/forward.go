package indexdtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// forward listens, and passes connections on to where an index is now.
func forward(t *testing.T, to func() string) (addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to())
				if err != nil {
					return
				}
				defer out.Close()
				wg.Go(func() {
					_, _ = io.Copy(out, in)
					out.Close()
				})
				_, _ = io.Copy(in, out)
				in.Close()
			})
		}
	})
	return ln.Addr().String()
}
