// Package storages tests the kinds of storages against real servers of theirs, which run on loopback: fetchertest's
// suites, a server that is killed in mid-write, and a large object there and back. `make storages` builds the servers and runs it.
//
// Each kind has a file with the function that starts its server (StartVersitygw), for other packages too, and a test of
// its own name. No test's verdict depends on time.
package storages
