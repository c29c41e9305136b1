// Command capelin distributes container images peer to peer. Each role is a
// subcommand, and so is what people do with images, nodes and certificates, in a file of
// its own; what the commands of the roles have in common is daemon.go. It parses, wires
// and exits: the roles are packages (plugin, origind, trackerd, indexd, gateway), and
// nobody imports this one.
package main
