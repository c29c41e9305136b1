package backends

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/fetcher/limit"
	"github.com/capelin-io/capelin/fetcher/moving"
	"github.com/capelin-io/capelin/fetcher/owned"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Config is one backend.
type Config struct {
	Name       string      `toml:"name" comment:"Name of the backend, 1 to 64 characters of a-z, 0-9, \"-\", \"_\" and \".\". It is kept with each blob, as the place where it is, and so must not change."`
	Namespaces []string    `toml:"namespaces" comment:"Which namespaces (repositories) belong to it: regular expressions (RE2) of which one matches the whole name, such as [\"team-a/.*\"]. The first backend in the file that matches is taken."`
	ReadRate   config.Rate `toml:"read_rate" comment:"What is read from it per second at most, by all readers together, such as \"300MB/s\". 0: no limit."`
	WriteRate  config.Rate `toml:"write_rate" comment:"The same for what is written to it."`
	Storage
	Next Storage `toml:"next" like:"the backend" comment:"Where all of it goes when \"capelin origin move-backend\" moves it: all origins are told, before it begins. No kind: nowhere."`
}

// User is whoever uses backends.
type User struct {
	Cluster string
	Name    string // of an origin, which no other process has at the same time
}

// Example returns what a printed configuration shows.
func (Config) Example() any {
	return Config{
		Name:       "main",
		Namespaces: []string{".*"},
		Storage:    Storage{Kind: KindFile, File: file.Config{Path: "/var/lib/capelin/backend"}},
	}
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

// Check reports what is wrong with a list of backends, as config.Invalid errors
// whose keys begin with that of the list, such as "backend".
func Check(list []Config, key string) (errs []error) {
	seen := map[string]bool{}
	for i, c := range list {
		prefix := fmt.Sprintf("%s[%d].", key, i)
		errs = append(errs, c.check(prefix)...)
		if c.Name != "" && seen[c.Name] {
			errs = append(errs, config.Invalid(prefix+"name", "there is another backend %q", c.Name))
		}
		seen[c.Name] = true
	}
	return errs
}

func (c Config) check(prefix string) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.Invalid(prefix+key, format, args...))
	}
	if !namePattern.MatchString(c.Name) {
		bad("name", "%q is not 1 to 64 characters of a-z, 0-9, \"-\", \"_\" and \".\"", c.Name)
	}
	if len(c.Namespaces) == 0 {
		bad("namespaces", "must have a pattern; [\".*\"] matches all")
	}
	for _, p := range c.Namespaces {
		if _, err := config.Pattern(p); err != nil {
			bad("namespaces", "%q: %v", p, err)
		}
	}
	for key, rate := range map[string]config.Rate{"read_rate": c.ReadRate, "write_rate": c.WriteRate} {
		if rate < 0 {
			bad(key, "%v is negative", rate)
		}
	}
	if c.Kind != KindNone {
		errs = append(errs, c.Storage.Check(prefix)...)
	}
	if c.Next.Kind == "" {
		return errs
	}
	errs = append(errs, c.Next.Check(prefix+"next.")...)
	for key, s := range map[string]*Storage{"kind": &c.Storage, "next.kind": &c.Next} {
		if k, err := s.kind(); (err == nil || s.Kind == KindNone) && !k.writes {
			bad(key, "%q is not written, and so nothing moves from there or to there", s.Kind)
		}
	}
	return errs
}

// Open opens one backend. It is nil for KindNone. One that is written is a *moving.Storage, of *owned.Storages.
func Open(c Config, user User) (fetcher.Backend, error) {
	if errs := c.check(""); errs != nil {
		return nil, fmt.Errorf("backend %q: %w: %w", c.Name, errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	if c.Kind == KindNone {
		return nil, nil
	}
	b, err := c.open(&c.Storage)
	if err != nil || !b.Capabilities().Write {
		return b, err
	}
	var next fetcher.Backend
	if c.Next.Kind != "" {
		if next, err = c.open(&c.Next); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		next = owned.New(next, user.Cluster)
	}
	return moving.Blobs.New(owned.New(b, user.Cluster), next, user.Name), nil
}

func (c *Config) open(s *Storage) (fetcher.Backend, error) {
	b, err := s.Open()
	if err != nil {
		return nil, fmt.Errorf("backend %q: %w", c.Name, err)
	}
	return limit.Rates(b, int64(c.ReadRate), int64(c.WriteRate)), nil
}

// Entry is a backend in a Set.
type Entry struct {
	Name       string
	Namespaces []string        // as in Config
	Backend    fetcher.Backend // nil: KindNone
}

// Set is a list of backends, in order. It does not change; all its methods may be
// called concurrently.
type Set struct {
	entries []entry
}

type entry struct {
	Entry
	patterns []*regexp.Regexp
}

// OpenSet opens all backends, or none.
func OpenSet(list []Config, user User) (_ *Set, err error) {
	if errs := Check(list, "backend"); errs != nil {
		return nil, fmt.Errorf("backends: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	var entries []Entry
	defer func() {
		if err != nil {
			for _, e := range entries {
				if e.Backend != nil {
					_ = e.Backend.Close()
				}
			}
		}
	}()
	for _, c := range list {
		b, err := Open(c, user)
		if err != nil {
			return nil, err
		}
		entries = append(entries, Entry{c.Name, c.Namespaces, b})
	}
	return NewSet(entries...)
}

// NewSet returns a Set of backends that are open already, which belong to it then.
func NewSet(entries ...Entry) (*Set, error) {
	s := &Set{}
	for _, e := range entries {
		n := entry{Entry: e}
		for _, p := range e.Namespaces {
			re, err := config.Pattern(p)
			if err != nil {
				return nil, fmt.Errorf("backend %q: %w: %w", e.Name, err, errdefs.ErrInvalidArgument)
			}
			n.patterns = append(n.patterns, re)
		}
		if _, ok := s.Get(e.Name); ok {
			return nil, fmt.Errorf("there are two backends %q: %w", e.Name, errdefs.ErrInvalidArgument)
		}
		s.entries = append(s.entries, n)
	}
	return s, nil
}

// Match returns the first backend of which a pattern matches the namespace: nil if
// its kind is KindNone. ok is false if none does.
func (s *Set) Match(namespace string) (name string, b fetcher.Backend, ok bool) {
	for _, e := range s.entries {
		for _, p := range e.patterns {
			if p.MatchString(namespace) {
				return e.Name, e.Backend, true
			}
		}
	}
	return "", nil, false
}

// Get returns the backend of a name, which is nil for KindNone.
func (s *Set) Get(name string) (fetcher.Backend, bool) {
	for _, e := range s.entries {
		if e.Name == name {
			return e.Backend, true
		}
	}
	return nil, false
}

// All returns the backends by their names, without those of KindNone.
func (s *Set) All() map[string]fetcher.Backend {
	all := make(map[string]fetcher.Backend, len(s.entries))
	for _, e := range s.entries {
		if e.Backend != nil {
			all[e.Name] = e.Backend
		}
	}
	return all
}

// Close closes all backends.
func (s *Set) Close() error {
	var errs []error
	for _, e := range s.entries {
		if e.Backend == nil {
			continue
		}
		if err := e.Backend.Close(); err != nil {
			errs = append(errs, fmt.Errorf("backend %q: %w", e.Name, err))
		}
	}
	return errors.Join(errs...)
}
