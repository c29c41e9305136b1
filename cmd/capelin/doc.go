// Command capelin distributes container images peer to peer; each role is a
// subcommand, in a file of its own. It parses, wires a role, and exits: the roles are
// packages (plugin, origind, trackerd, indexd, gateway), and nobody imports this one.
package main
