// Package fetchsim runs the fetches of many nodes in virtual time: the value that decides
// what containerd is told (plugin/fetch), the value that is each node's side of the
// control stream (control/tracker) and trackers (trackerd/state), the very ones that
// agents and trackerd run. A run is a function of its [Config], Seed included.
//
// Start from [Run]. What is checked after each event and at the end:
//
//   - who waits is answered, as soon as no byte has come for the stall time; nobody waits for ever;
//   - no session is given a lease that another one has; a lease ends exactly once, with
//     its session;
//   - no tracker holds a lease for a node where nobody wants the blob, but for as long as
//     messages take; none is left when all is done.
//
// What leaves the registry is counted: with trackers that answer, a copy for the cluster.
//
// # What is modelled
//
// Messages take as long as chance has it, in order on each stream, so that those of both
// directions, and of two trackers, cross. A stream that breaks loses what is under way. What
// a node's trackers' client has to say reaches its fetches a moment later, as in the agent.
// Nodes crash and come back with their disks; clients give up and come back; the registry
// refuses some. The registry's bytes are shared by whoever downloads, whose containerd writes
// them a MiB at a time.
//
// # What is left out
//
// The swarm is a rate at which a node takes from the best of those that it was told of, in
// order from the first byte on: package sim has the real one. Disks take no time.
package fetchsim
