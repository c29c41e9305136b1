package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/containerd/log"
	"google.golang.org/grpc"

	"github.com/capelin-io/capelin/internal/daemon/ops"
)

// HTTP is a server of HTTP on ln. In the end its requests have patience to end.
func HTTP(name string, ln net.Listener, s *http.Server, patience time.Duration) Part {
	return Part{name, func(ctx context.Context) error { return ops.Serve(ctx, ln, s, patience) }}
}

// GRPC is a server of gRPC on ln. In the end drain is called, which may answer calls
// that would wait for longer; then calls have patience to end, and are broken off.
func GRPC(name string, ln net.Listener, s *grpc.Server, patience time.Duration, drain func()) Part {
	return Part{name, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		drain()
		stopGRPC(ctx, s, patience)
		if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // before it had begun
			return err
		}
		return nil
	}}
}

func stopGRPC(ctx context.Context, s *grpc.Server, patience time.Duration) {
	if patience == 0 {
		s.Stop()
		return
	}
	stopped := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(stopped)
	}()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-stopped:
	case <-t.C:
		log.G(ctx).Warn("calls still run, ending them")
		s.Stop()
		<-stopped
	}
}
