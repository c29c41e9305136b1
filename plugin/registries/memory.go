package registries

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// Unknown is what a registry is taken to give as long as its rate is not known, in bytes
	// per second.
	Unknown = 4e6

	maxHosts = 256 // the least recently used is forgotten
	// enough is how much a download brings at least that says something about the rate.
	// Less says how long the registry takes to answer.
	enough = 1 << 20
)

// Memory is what is known of registries. The zero value is not usable, see [New].
type Memory struct {
	hosts *simplelru.LRU[string, *host]
}

type host struct {
	brought int64   // bytes that all downloads have brought
	rate    float64 // bytes per second; 0: not known
	ranges  ranges
}

// New returns a Memory that knows nothing.
func New() *Memory {
	l, err := simplelru.NewLRU[string, *host](maxHosts, nil)
	if err != nil {
		panic(err) // only for a size of 0
	}
	return &Memory{hosts: l}
}

// known returns what is known of a registry, nil if there is nothing.
func (m *Memory) known(name string) *host {
	name, _ = split(name)
	h, _ := m.hosts.Get(name)
	return h
}

// host returns what is known of a registry, made if there was nothing.
func (m *Memory) host(name string) *host {
	h := m.known(name)
	if h == nil {
		h = &host{}
		name, _ = split(name)
		m.hosts.Add(name, h)
	}
	return h
}

// Len returns of how many registries something is known.
func (m *Memory) Len() int { return m.hosts.Len() }

// Rate returns how many bytes a second all downloads of this node from a registry bring
// together, as the last ones did; 0: not known.
func (m *Memory) Rate(name string) float64 {
	if h := m.known(name); h != nil {
		return h.rate
	}
	return 0
}

// Download is one download from a registry. Its zero value has not begun.
type Download struct {
	first, last time.Time // when bytes came
	brought     int64     // by this one, after the first ones
	before      int64     // by all, up to then
	all         int64     // by all, up to last
}

// Brought takes in that a download brought bytes. The time until the first ones came counts
// for nothing.
func (m *Memory) Brought(name string, d *Download, bytes int64, now time.Time) {
	h := m.host(name)
	h.brought += bytes
	if d.first.IsZero() {
		d.first, d.before = now, h.brought
	} else {
		d.brought += bytes
	}
	d.last, d.all = now, h.brought
}

// Over takes in that a download is over, whatever became of it. What the others brought
// meanwhile counts as well: they share what the registry gives.
func (m *Memory) Over(name string, d *Download) {
	took := d.last.Sub(d.first)
	if d.brought < enough || took <= 0 {
		return
	}
	h := m.host(name)
	if rate := float64(d.all-d.before) / took.Seconds(); h.rate == 0 {
		h.rate = rate
	} else {
		h.rate = (h.rate + rate) / 2
	}
}
