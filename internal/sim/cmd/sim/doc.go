// Command sim prints the table of goals that the swarm is held to, as measured
// in virtual time: the worst of each scenario's seeds, and whether the goal is
// met. It ends with one line of key=value figures.
package main
