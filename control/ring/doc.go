// Package ring chooses nodes for keys by rendezvous hashing: everybody who knows
// the same names chooses the same ones, in the same order, and when a node goes
// only its own keys move.
//
// Start from [Top]. All functions are pure.
package ring
