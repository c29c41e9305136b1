// Command bench-storages measures how fast each kind of storage takes and gives a large object, against the tool that people
// would otherwise use for it, on the same server on this machine, in turn. What the tool takes to start is measured and
// subtracted. A kind is one line in kinds and a file of its own.
package main
