// Package install puts the node agent between containerd and its content, takes
// it away again, and explains what is wrong with it.
//
// Start from [Look], which finds out what kind of containerd a host has, where
// its files are and what it would load, as a [Survey]. [NewPlan] makes of that,
// and of the wanted configuration, the list of files to write; [Plan.Apply]
// writes them, each durably and as a whole, and remembers them with their sums
// in a [Receipt], so that a [Removal] removes exactly these and nothing that
// somebody has changed since. [Doctor] runs checks, each of which answers with
// findings: what it saw, why that matters, what to do.
//
// # The fallback
//
// No container starts on a node whose agent does not: containerd would wait for
// its content store. So systemd, when it gives the agent up, starts the fallback
// unit, which runs [Fallback]: the drop-in is moved aside, a marker is written,
// and containerd is restarted on its stock store, which has the same blobs. While
// the marker is there the units refuse to start (their conditions name it), so
// that restarting containerd cannot begin it all again, and an agent does not run
// beside a stock containerd on one directory for longer than it is tried.
//
// [Return], which systemd runs as long as there is a marker, tries the agent and ends
// the fallback when it works; [Undo] is the same for people. A fallback and a return
// restart containerd once each, and a node returns by itself once a day at most.
//
// # Hosts
//
// Everything sees the machine through a [Host]: files below a root directory,
// commands, sockets, disks, the clock. [Local] is the real one, whose root may be
// an image that is being built. Nothing here keeps state or starts a goroutine
// that outlives the call.
package install
