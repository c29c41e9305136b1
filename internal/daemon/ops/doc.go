// Package ops is what every daemon shows its operators over HTTP: /metrics,
// /healthz, /readyz, and Go's profiler if it is asked for. [Handler] serves it,
// [Check] validates the two configuration keys that go with it, metrics and
// pprof, so that they mean the same everywhere.
package ops
