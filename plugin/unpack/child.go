package unpack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	// maxWindow is the largest window of a zstd frame that is decoded in this process,
	// which holds it twice for each layer. zstd uses up to 8 MiB unless it is told to
	// take more (--ultra, --long).
	maxWindow = 16 << 20
	// childMemory bounds the data of a process that decodes larger ones, up to zstd.MaxWindowSize.
	childMemory = zstd.MaxWindowSize + 512<<20
)

// childSlot holds a token while there is such a process: one at a time is all the memory that they get.
var childSlot = make(chan struct{}, 1)

// DecodeZstd is the process that [Options.Child] starts: it writes to w what the zstd
// stream r holds. If memory is short it dies before all others, and at the latest when
// it has 1 GiB.
func DecodeZstd(r io.Reader, w io.Writer) error {
	debug.SetGCPercent(10)
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return fmt.Errorf("volunteering for the kernel's out-of-memory killer: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: childMemory, Max: childMemory}); err != nil {
		return fmt.Errorf("limiting memory: %w", err)
	}
	z, err := newZstd(r, zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{z}, make([]byte, chunkSize)) // no WriteTo: it starts goroutines
	return err
}

// newZstd returns a decoder without goroutines.
func newZstd(r io.Reader, opts ...zstd.DOption) (*zstd.Decoder, error) {
	return zstd.NewReader(bufio.NewReaderSize(r, readSize), append(opts, zstd.WithDecoderConcurrency(1))...)
}

// A child is a process that decodes a blob.
type child struct {
	io.Reader // its output
	cmd       *exec.Cmd
	in        *recorded
	said      limited
	err       error // how it ended; nil: it has not
}

// startChild starts one, when no other is left. It is killed when ctx is done.
func startChild(ctx context.Context, command []string, blob io.Reader) (*child, error) {
	if len(command) == 0 {
		return nil, fmt.Errorf("a zstd window of more than %d MiB: %w", maxWindow>>20, ErrTooLarge)
	}
	select {
	case childSlot <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c := &child{cmd: exec.CommandContext(ctx, command[0], command[1:]...), in: &recorded{Reader: blob}}
	c.cmd.Stdin, c.cmd.Stderr = c.in, &c.said
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		<-childSlot
		return nil, fmt.Errorf("starting a process for a zstd window of more than %d MiB: %w", maxWindow>>20, err)
	}
	c.Reader = out
	return c, nil
}

func (c *child) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Reader.Read(p)
	if err != nil {
		c.ended()
		err = c.err
	}
	return n, err
}

// ended waits for the process.
func (c *child) ended() {
	err := c.cmd.Wait()
	<-childSlot
	var exit *exec.ExitError
	switch {
	case c.in.err != nil:
		c.err = c.in.err
	case err == nil:
		c.err = io.EOF
	case errors.As(err, &exit) && exit.ExitCode() == 1: // as DecodeZstd fails
		c.err = errors.New(c.said.line())
	default: // killed, or out of memory
		c.err = fmt.Errorf("the process for a zstd window of more than %d MiB: %w: %w", maxWindow>>20, err, ErrTooLarge)
	}
}

// end kills the process, if it still runs.
func (c *child) end() {
	if c.err == nil {
		_ = c.cmd.Process.Kill()
		c.ended()
	}
}

// A recorded reader keeps its error.
type recorded struct {
	io.Reader
	err error
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// A limited buffer keeps the first bytes.
type limited struct{ b []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), 4<<10-len(l.b))]...)
	return len(p), nil
}

func (l *limited) line() string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(l.b), []byte("\n"))
	return string(line)
}
