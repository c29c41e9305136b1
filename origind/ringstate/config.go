package ringstate

import "time"

// Config is a member's policy. Zero fields take their defaults.
type Config struct {
	Name string // of its certificate
	Addr string // where the others reach it
	Zone string
	// Incarnation is a random number of the disk, made when the disk is first used.
	Incarnation uint64
	Members     []string // the list, with or without Name

	Replicas    int // R, default 3; all have to agree
	MinReplicas int // default 2; all have to agree. Nothing but the configuration changes it

	Probe    time.Duration // how often each member is asked for its status; default 1 s
	Down     time.Duration // without a sign of life; default 10 s
	Gone     time.Duration // the same; default 15 min
	Starting time.Duration // how long a start waits for the others; default 30 s
	Calm     time.Duration // how long a view is left alone before it is acted on; default 2 s
	Exchange time.Duration // how often each pair compares; default 10 min
	Standby  time.Duration // when the next holder writes what the one before does not; default 10 min
	Retry    time.Duration // how long after a failure a backend is tried again, doubled by each; default 1 s
	RetryMax time.Duration // at most; default 1 min
	Push     time.Duration // how long copies, or deletions, are waited for; default 20 s
	Ask      time.Duration // how long an answer is waited for; default 5 s
	Grace    time.Duration // how long after a restart an erasure of before may still happen; default 1 min
	LogKeep  time.Duration // how long entries of the deletion log stay; default 7 d
	Parallel int           // blobs that a receiver fetches at once, four times as many urgent ones; default 4
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
	num(&c.Replicas, 3)
	num(&c.MinReplicas, 2)
	dur(&c.Probe, time.Second)
	dur(&c.Down, 10*time.Second)
	dur(&c.Gone, 15*time.Minute)
	dur(&c.Starting, 30*time.Second)
	dur(&c.Calm, 2*time.Second)
	dur(&c.Exchange, 10*time.Minute)
	dur(&c.Standby, 10*time.Minute)
	dur(&c.Retry, time.Second)
	dur(&c.RetryMax, time.Minute)
	dur(&c.Push, 20*time.Second)
	dur(&c.Ask, 5*time.Second)
	dur(&c.Grace, time.Minute)
	dur(&c.LogKeep, 7*24*time.Hour)
	num(&c.Parallel, 4)
	return c
}
