package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/integration/benchkit"
	"github.com/capelin-io/capelin/integration/harness"
)

// floor moves the same bytes to as many receivers in memory with nothing but what any
// program has to do: sendfile to a connection over loopback, and at its other end read,
// SHA-256 and write. All of it is one process: no piece is chosen, asked for or announced,
// and nothing is switched between processes. It is how fast the machine is.
func (s scenario) floor(ctx context.Context, seed uint64) (_ *result, err error) {
	dir, err := os.MkdirTemp("/dev/shm", "capelin-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	_, path, err := benchkit.RandomImage(dir, s.Size, seed)
	if err != nil {
		return nil, err
	}
	if err := benchkit.WarmMemory(s.Size * int64(s.To)); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	before, err := harness.ProcessCPU(os.Getpid())
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() { ln.Close() }) // nobody waits for who does not come
	defer stop()
	start := time.Now()
	for i := range s.To {
		g.Go(func() error { return benchkit.SendFile(ln, path) })
		g.Go(func() error {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			return benchkit.ReceiveFile(c, filepath.Join(dir, fmt.Sprint(i)), s.Size)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(start)
	after, err := harness.ProcessCPU(os.Getpid())
	if err != nil {
		return nil, err
	}
	return s.result(took, after-before), nil
}
