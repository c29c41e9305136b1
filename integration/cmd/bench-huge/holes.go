package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/swarm/piece"
)

// holes cuts out of files what a node has verified.
type holes struct {
	id    piece.ID
	node  string   // its content directory
	files []string // content directories of all that store it

	open map[string]*os.File // data files, by directory; they keep their inode when they are renamed
	cut  []bool              // by piece
	most int64               // bytes that the files had together
}

// run goes on until ctx is done.
func (h *holes) run(ctx context.Context) error {
	h.open, h.cut = map[string]*os.File{}, make([]bool, h.id.Pieces())
	defer func() {
		for _, f := range h.open {
			f.Close()
		}
	}()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := h.step(); err != nil {
			return err
		}
	}
}

// partial is where a content store has a blob that is arriving (content/FORMAT.md, section 1).
func (h *holes) partial(dir, suffix string) string {
	hex := h.id.Digest()[len("sha256:"):]
	return filepath.Join(dir, "swarm", "partial", fmt.Sprintf("sha256-%s-%d.%s", hex, h.id.Size, suffix))
}

func (h *holes) step() error {
	total := int64(0)
	for _, dir := range h.files {
		if h.open[dir] == nil {
			f, err := os.OpenFile(h.partial(dir, "data"), os.O_RDWR, 0)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has not begun
			}
			if err != nil {
				return err
			}
			h.open[dir] = f
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(h.open[dir].Fd()), &st); err != nil {
			return err
		}
		total += st.Blocks * 512
	}
	h.most = max(h.most, total)
	have, err := h.have()
	if err != nil {
		return err
	}
	for from := 0; from < len(have); from++ {
		to := from
		for to < len(have) && have[to] && !h.cut[to] {
			h.cut[to] = true
			to++
		}
		if to == from {
			continue
		}
		off := int64(from) * h.id.Length()
		n := min(int64(to)*h.id.Length(), h.id.Size) - off
		for _, f := range h.open {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
				return fmt.Errorf("cutting a hole into %s: %w", f.Name(), err)
			}
		}
		from = to
	}
	return nil
}

// have returns which pieces the node's map covers (content/FORMAT.md, section 2): they are verified, and on its disk.
func (h *holes) have() ([]bool, error) {
	const sum, boot, head = 32, 16, 20
	data, err := os.ReadFile(h.partial(h.node, "map"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pieces := h.id.Pieces()
	at := head + sum + boot
	if len(data) < at+4 {
		return nil, fmt.Errorf("a map of %d bytes", len(data))
	}
	at += 4 + int(binary.BigEndian.Uint32(data[at:]))*sum
	if len(data) != at+(pieces+7)/8+4 {
		return nil, fmt.Errorf("a map of %d bytes for %d pieces", len(data), pieces)
	}
	have := make([]bool, pieces)
	for i := range have {
		have[i] = data[at+i/8]&(0x80>>(i%8)) != 0
	}
	return have, nil
}
