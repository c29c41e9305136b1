package origind

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/origind/ringstate"
)

const (
	// A backend is asked whether it can be used so often, while it can and while it cannot.
	storageUpEvery, storageDownEvery = time.Minute, 30 * time.Second
	// storageWithin is how long its answer may take.
	storageWithin = time.Minute
	// storageWarnEvery is the time between two warnings about one backend.
	storageWarnEvery = time.Hour
	// maxStoragesTold is of how many backends other members are told which storage is behind them.
	maxStoragesTold = 64
	// maxStorageText is how much of an error operators are shown, in bytes.
	maxStorageText = 500
)

// storages tell operators which backends can be used. Nothing else depends on it, readiness least of all: an origin whose
// backend is away serves what it has, and keeps what is pushed.
type storages struct {
	backends map[string]fetcher.Backend
	ring     storageRing // set before run

	mu sync.Mutex
	m  map[string]origin.RingBackend // those that have answered
}

func newStorages(backends map[string]fetcher.Backend) *storages {
	return &storages{backends: backends, m: map[string]origin.RingBackend{}}
}

// storageRing is the ring, for storages: what other members have behind their backends, and what they are told of this one's.
type storageRing interface {
	storages() map[string][]ringstate.Storage
	tellStorages(all []ringstate.Storage)
}

// run asks all of them, again and again, until ctx ends.
func (s *storages) run(ctx context.Context) {
	var wg sync.WaitGroup
	for name, b := range s.backends {
		wg.Go(func() { s.watch(ctx, name, b) })
	}
	wg.Wait()
}

func (s *storages) watch(ctx context.Context, name string, b fetcher.Backend) {
	var warned time.Time
	silent := true // since it could be used, nobody was warned
	var alike storageCompare
	for {
		err := checkStorage(ctx, b)
		if ctx.Err() != nil {
			return
		}
		s.note(name, err)
		alike.look(ctx, s, name)
		entry, pause := log.G(ctx).WithField("backend", name), storageUpEvery
		switch now := time.Now(); {
		case err != nil:
			if warned.IsZero() || now.Sub(warned) >= storageWarnEvery {
				entry.WithError(err).Warn("a backend cannot be used; what is here is served, and what is pushed is kept, meanwhile")
				warned, silent = now, false
			}
			pause = storageDownEvery
		case !silent:
			entry.Info("a backend can be used again")
			silent = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// memberStorage is a backend that knows who uses it: a moving.Storage.
type memberStorage interface {
	// Join registers this origin, so that what is there does not move without it.
	Join(ctx context.Context) error
	// ID is the storage's own, "" if it is not known.
	ID() string
}

func checkStorage(ctx context.Context, b fetcher.Backend) error {
	ctx, cancel := context.WithTimeout(ctx, storageWithin)
	defer cancel()
	err := b.Check(ctx)
	if m, ok := b.(memberStorage); ok && err == nil {
		err = m.Join(ctx)
	}
	return err
}

// note keeps what a backend has answered.
func (s *storages) note(name string, err error) {
	now := origin.RingBackend{Name: name, Up: err == nil, Since: time.Now()}
	if m, ok := s.backends[name].(memberStorage); ok {
		now.Storage = m.ID()
	}
	if err != nil {
		now.Error = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, err.Error())
		if len(now.Error) > maxStorageText {
			now.Error = strings.ToValidUTF8(now.Error[:maxStorageText], "") + "…"
		}
	}
	s.ring.tellStorages(s.keep(name, now))
}

// keep keeps what a backend has answered, and returns what is known of all storages.
func (s *storages) keep(name string, now origin.RingBackend) (all []ringstate.Storage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, ok := s.m[name]; ok && before.Up == now.Up {
		now.Since = before.Since
	}
	s.m[name] = now
	for _, b := range s.m {
		if b.Storage != "" {
			all = append(all, ringstate.Storage{Backend: b.Name, ID: b.Storage})
		}
	}
	slices.SortFunc(all, func(a, b ringstate.Storage) int { return cmp.Compare(a.Backend, b.Backend) })
	return all[:min(len(all), maxStoragesTold)]
}

// storageCompare compares a backend's storage with those of other members.
type storageCompare struct {
	before []string // who had another one, the last time
	warned time.Time
}

// look warns of members that have another storage, if they had it the last time, too: when a backend moves to another storage, not all
// of them say so at the same time.
func (c *storageCompare) look(ctx context.Context, s *storages, name string) {
	var now []string
	for _, b := range s.list() {
		if b.Name == name {
			now = b.Differs
		}
	}
	still := slices.DeleteFunc(slices.Clone(now), func(m string) bool { return !slices.Contains(c.before, m) })
	if c.before = now; len(still) == 0 || !c.warned.IsZero() && time.Since(c.warned) < storageWarnEvery {
		return
	}
	c.warned = time.Now()
	log.G(ctx).WithFields(log.Fields{"backend": name, "members": strings.Join(still, ", ")}).
		Warn("other members of the ring have another storage behind this backend; give all of them the same one, or blobs are found at some only")
}

// list returns what is known, by name.
func (s *storages) list() []origin.RingBackend {
	others := s.ring.storages()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.SortedFunc(maps.Values(s.m), func(a, b origin.RingBackend) int { return cmp.Compare(a.Name, b.Name) })
	for i := range all {
		b := &all[i]
		for _, name := range slices.Sorted(maps.Keys(others)) {
			if b.Storage != "" && slices.ContainsFunc(others[name], func(o ringstate.Storage) bool {
				return o.Backend == b.Name && o.ID != b.Storage
			}) {
				b.Differs = append(b.Differs, name)
			}
		}
	}
	return all
}

// collect gives the metrics.
func (s *storages) collect(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	for _, b := range s.list() {
		v := 0.0
		if b.Up {
			v = 1
		}
		gauge(descBackend, v, b.Name)
		gauge(descDiffers, float64(len(b.Differs)), b.Name)
	}
}

// ringAndStorages is a ringMember whose status has the backends and the disks, too.
type ringAndStorages struct {
	ringMember
	storages *storages
	disks    *disks
}

func (r ringAndStorages) status(ctx context.Context) (*origin.RingStatus, error) {
	st, err := r.ringMember.status(ctx)
	if err == nil {
		st.Backends = r.storages.list()
		if all := r.disks.list(); len(all) > 1 {
			st.Disks = all
		}
	}
	return st, err
}
