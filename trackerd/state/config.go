package state

import "time"

// Config is the tracker's policy. Zero fields take the defaults, which
// [Config.WithDefaults] fills in.
type Config struct {
	Cluster  string // told in Welcome
	Software string // told in Welcome

	// Warmup is how long after its start the tracker answers WAIT for a blob
	// that it does not know, because agents may not have re-announced yet. It
	// lasts up to twice as long while agents still connect or announce much.
	// Default 2 s; negative: none.
	Warmup time.Duration
	// PingInterval is told in Welcome; keeping it is the shell's business.
	// Default 5 s.
	PingInterval time.Duration
	// FlushInterval is the longest time for which news about a swarm are
	// collected before they are pushed. Default 100 ms. It grows by 50 µs per
	// wanting agent, so that a swarm of 15,000 costs no more than a tenth of a
	// core.
	FlushInterval time.Duration

	// Lookup is how long origins have to say whether they have a blob that nobody
	// announced, or can get it. Meanwhile the verdict is WAIT; then a lease is
	// granted. Default 100 ms, half of what agents allow for finding out; negative:
	// they are not asked.
	Lookup time.Duration
	// LookupAgain is when they are asked again for a blob that is still wanted, if
	// no other one connects before. Default 30 s.
	LookupAgain time.Duration

	// MaxUnstarted is how many leases an agent holds that it has not started to
	// use. Default 3: containerd downloads as many layers at once.
	MaxUnstarted int
	// Unstarted is when a lease moves that its holder has not started. Default 3 s.
	Unstarted time.Duration
	// Stall is when a lease moves that made no progress. Default 3 s.
	Stall time.Duration
	// AddBelow: while all holders together bring fewer bytes per second than
	// this, over AddWindow, another waiting agent gets a lease as well. Default
	// 128 KiB/s; negative: never.
	AddBelow int64
	// AddWindow: default 10 s.
	AddWindow time.Duration
	// SlowPause is how long after a lease was granted one is granted to an agent that says that
	// what the sources bring is slow: until then it may come faster. Four times as long each time.
	// Default 1 s.
	SlowPause time.Duration
	// MaxHolders is how many leases there are of one blob at once, those of
	// AddBelow included, those of SlowPause not. Default 4.
	MaxHolders int
	// Backoff is the pause after upstream failed a holder; doubled with each
	// further failure of this node, or of another one in a row. Default 500 ms.
	Backoff time.Duration
	// MaxFailures of one node give it no lease of that blob for NobodyFor: it may have a
	// registry of its own. Failures of as many nodes in a row make the blob unobtainable: the
	// verdict is NOBODY for NobodyFor. Default 3.
	MaxFailures int
	// NobodyFor: default 30 s.
	NobodyFor time.Duration

	// Enough is how many complete peers of a blob are kept. Default 300.
	Enough int
	// EnoughAgain is when an agent that was told "enough" may announce the blob
	// again. Default 30 min.
	EnoughAgain time.Duration
	// Sample is how many peers a wanting agent is told of. Default 40.
	Sample int
	// OutsideZone is how many of the sample are from other zones, if there are
	// any. Default 10.
	OutsideZone int
	// MinComplete is how many complete peers are in each sample, if there are
	// that many. Default 3.
	MinComplete int

	// MaxBlobs is how many blobs one stream announces or wants. Default 20,000.
	MaxBlobs int
	// MaxWants is how many blobs one stream wants. Default 1,000.
	MaxWants int
	// MaxEntries is how many pairs of agent and blob are kept in all, at about
	// 30 bytes each. Default 16 million.
	MaxEntries int
	// MaxSwarms is how many blobs are kept in all, at about 500 bytes each.
	// Default 1 million.
	MaxSwarms int
}

// WithDefaults returns c with its zero fields filled in.
func (c Config) WithDefaults() Config {
	dur := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	num := func(n *int, def int) {
		if *n == 0 {
			*n = def
		}
	}
	dur(&c.Warmup, 2*time.Second)
	dur(&c.PingInterval, 5*time.Second)
	dur(&c.FlushInterval, 100*time.Millisecond)
	dur(&c.Lookup, 100*time.Millisecond)
	dur(&c.LookupAgain, 30*time.Second)
	num(&c.MaxUnstarted, 3)
	dur(&c.Unstarted, 3*time.Second)
	dur(&c.Stall, 3*time.Second)
	if c.AddBelow == 0 {
		c.AddBelow = 128 << 10
	}
	dur(&c.AddWindow, 10*time.Second)
	dur(&c.SlowPause, time.Second)
	num(&c.MaxHolders, 4)
	dur(&c.Backoff, 500*time.Millisecond)
	num(&c.MaxFailures, 3)
	dur(&c.NobodyFor, 30*time.Second)
	num(&c.Enough, 300)
	dur(&c.EnoughAgain, 30*time.Minute)
	num(&c.Sample, 40)
	num(&c.OutsideZone, 10)
	num(&c.MinComplete, 3)
	num(&c.MaxBlobs, 20000)
	num(&c.MaxWants, 1000)
	num(&c.MaxEntries, 16_000_000)
	num(&c.MaxSwarms, 1_000_000)
	return c
}
