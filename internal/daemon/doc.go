// Package daemon is what every role of Capelin has in common: [Common], the part of
// its configuration that means the same everywhere, and [Run], its life from the
// first check of the configuration to the last goroutine.
//
// A role's Run reads as what the role is made of, and ends with [Daemon.Serve]:
//
//	func Run(ctx context.Context, cfg Config) error {
//		return daemon.Run(ctx, "index", &cfg, func(ctx context.Context, d *daemon.Daemon) error {
//			ln, err := d.Listen(ctx, "listen", cfg.Listen, cfg.Listener)
//			...
//			return d.Serve(ctx, daemon.Parts{Servers: []daemon.Part{daemon.HTTP("API", ln, srv, patience)}})
//		})
//	}
//
// # The end
//
// When the context ends, or a part fails, things happen in this order: /readyz says
// no; systemd and the log are told; servers stop, and what they are answering has its
// time; work ends, and with it the metrics. So whoever watches /readyz knows of the end
// before a connection is refused, and a request that runs never misses what it needs.
//
// # What is in the way
//
// A role that is [Common.Patient] begins with what it can, and makes an [Obstacle] of the
// rest: a port that another process has, a certificate that cannot be used. It is tried
// again ([Daemon.Overcome]), the log and a metric tell of it, and the role is up meanwhile.
// The agent is one, because containers start from what it answers; other roles that lack
// something end, and are started again by whoever watches over them.
//
// # The file
//
// [File] says whether a role runs with its configuration file as that is now, and
// [Reload] keeps it true. A role may run on with what it had before when its file is
// refused; [Kept] is its memory of that.
//
// Below are config (files), identity (certificates), ops (metrics, health, HTTP
// servers) and version. What is of one role alone is not here.
package daemon
