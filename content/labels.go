package content

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/durable"
	"github.com/capelin-io/capelin/internal/durable/disk"
)

// labelStore keeps labels, a file per digest that has any. It implements
// containerd's local.LabelStore. containerd's metadata keeps labels itself, so
// under containerd it is empty.
type labelStore struct {
	root string
	dirs *durable.Dirs

	wmu sync.Mutex // serialises writers, held over their I/O

	mu sync.Mutex
	m  map[digest.Digest]map[string]string // nil value: on disk, not read yet
}

func newLabelStore(root string, dirs *durable.Dirs) *labelStore {
	return &labelStore{root: root, dirs: dirs, m: make(map[digest.Digest]map[string]string)}
}

// known notes at Open that d has a file.
func (l *labelStore) known(d digest.Digest) { l.m[d] = nil }

func (l *labelStore) path(d digest.Digest) string {
	return filepath.Join(l.root, string(d.Algorithm()), d.Encoded())
}

// Get returns a copy of d's labels, nil if it has none.
func (l *labelStore) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	m, ok := l.m[d]
	l.mu.Unlock()
	if !ok || m != nil {
		return maps.Clone(m), nil
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return l.read(d)
}

// read reads d's file unless that was done meanwhile. l.wmu is held.
func (l *labelStore) read(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	m, ok := l.m[d]
	l.mu.Unlock()
	if !ok || m != nil {
		return maps.Clone(m), nil
	}
	b, err := os.ReadFile(l.path(d))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	m = map[string]string{}
	if err == nil {
		if json.Unmarshal(b, &m) != nil {
			m = map[string]string{} // damaged: as good as none
		}
	}
	l.mu.Lock()
	l.m[d] = m
	l.mu.Unlock()
	return maps.Clone(m), nil
}

// Set replaces d's labels, durably.
func (l *labelStore) Set(d digest.Digest, m map[string]string) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return l.write(d, m)
}

// Update sets some of d's labels, durably; an empty value removes one.
func (l *labelStore) Update(d digest.Digest, m map[string]string) (map[string]string, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	old, err := l.read(d)
	if err != nil {
		return nil, err
	}
	if old == nil {
		old = make(map[string]string)
	}
	for k, v := range m {
		if v == "" {
			delete(old, k)
		} else {
			old[k] = v
		}
	}
	return old, l.write(d, old)
}

// write is called with l.wmu held.
func (l *labelStore) write(d digest.Digest, m map[string]string) error {
	if len(m) == 0 {
		return l.remove(d)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := l.dirs.Make(filepath.Dir(l.path(d))); err != nil {
		return err
	}
	if err := durable.WriteFile(l.path(d), append(b, '\n'), 0o600); err != nil {
		return err
	}
	l.mu.Lock()
	l.m[d] = maps.Clone(m)
	l.mu.Unlock()
	return nil
}

func (l *labelStore) remove(d digest.Digest) error {
	l.mu.Lock()
	_, ok := l.m[d]
	delete(l.m, d)
	l.mu.Unlock()
	if !ok {
		return nil
	}
	if err := disk.Remove(l.path(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Delete forgets d's labels, if it has any.
func (l *labelStore) Delete(d digest.Digest) error {
	l.mu.Lock()
	_, ok := l.m[d]
	l.mu.Unlock()
	if !ok {
		return nil
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return l.remove(d)
}
