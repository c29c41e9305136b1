// Package harness runs small clusters of real machines-in-miniature: nodes with
// an unmodified containerd and a capelin agent, a tracker, and registries that
// log, slow down and fail on demand.
//
// Start with [New], which makes a [Cluster]. A [Host] is one machine of it: a
// PID, mount and network namespace of its own below one init process, so that
// the loss of that process takes everything with it: processes, shims,
// containers, mounts and interfaces. Hosts hang on one bridge in a network
// namespace of the cluster; the machine's own network, /run and /etc are never
// touched. A [Node] is a Host with containerd and an agent; a [Registry] is a
// real registry behind a [Proxy]; an [Image] is made by [MakeImage].
//
// Everything here needs root. Functions return errors, so that the demo uses
// them as well as the tests. A Cluster may be used by several goroutines; one
// Node's Start and Stop calls must not overlap.
package harness
