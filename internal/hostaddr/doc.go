// Package hostaddr decides by which addresses a host is known to others: what a daemon that
// listens on all of its addresses tells of itself ([Advertised]), and what who hears it makes of
// that, seeing where it comes from ([Seen], [Public]). An address that means another machine
// to whoever is told of it (loopback, unspecified, link-local) does not leave its own.
//
// [Choose] and Seen are functions of what they are given; [Routes] and [Interfaces] look at this
// host.
package hostaddr
