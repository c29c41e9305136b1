// Command bench-ring measures what a ring of origins costs a push: the time until it is acknowledged, and the processor time
// and synced writes of all members, of a ring of three with min_replicas = 2 and of a single origin in turn. Each origin is a
// process on a host with a network namespace of its own, behind a link whose rate is limited both ways, and keeps what it has
// below TMPDIR, which should be a tmpfs: a disk would be measured instead.
//
// Large pushes say how fast bytes go, small ones what a push costs besides; synced writes are counted by strace in runs of
// their own. The last line is all figures as key=value.
package main
