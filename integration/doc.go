// Package integration is a module of its own that tests Capelin against real
// containerds, real registries and Docker: each test starts a small cluster (package
// harness) in network namespaces of this machine, and so needs root. `make
// integration` prepares what the tests need and runs them; README.md says what else
// there is here, and which bugs the tests have found.
//
// The tests run one after the other, because they share the machine and measure it.
// There is nothing here to import.
package integration
