package tracker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/rpcerr"
)

// Timing of streams; control/PROTOCOL.md, "Timing".
const (
	silenceTimeout  = 12 * time.Second // nothing received: the tracker is dead
	connectTimeout  = 5 * time.Second  // from dialling to Welcome
	lookupTimeout   = 2 * time.Second
	resolveInterval = 30 * time.Second
	missingInterval = 2 * time.Second // look-ups, while a name has no address
	backoffMin      = 75 * time.Millisecond
	backoffMax      = 1500 * time.Millisecond
	backoffSpread   = 1. / 3           // so that a cluster does not come back at once
	backoffRefused  = 10 * time.Second // wrong cluster or version: somebody must change something
)

// runTrackers finds trackers and keeps a stream to each.
func (c *Client) runTrackers(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	cancels := map[string]context.CancelFunc{}
	defer func() {
		for _, cancel := range cancels {
			cancel()
		}
	}()
	found := map[string][]string{} // by dns+ name: what the last look-up that succeeded gave
	for {
		names, unresolved, again := c.lookUp(ctx, found)
		for name, cancel := range cancels {
			if !slices.Contains(names, name) {
				cancel()
				delete(cancels, name)
			}
		}
		c.setTrackers(names, unresolved)
		for _, name := range names {
			if cancels[name] == nil {
				sctx, cancel := context.WithCancel(ctx)
				cancels[name] = cancel
				wg.Go(func() { c.runStream(sctx, name) })
			}
		}
		var timer <-chan time.Time
		if again > 0 {
			timer = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-timer:
		}
	}
}

// setTrackers makes the trackers known to the machine. Streams to others have been
// cancelled.
func (c *Client) setTrackers(names []string, unresolved map[string]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.perform(EvTrackers{Names: names, Unresolved: unresolved})
	maps.DeleteFunc(c.streams, func(name string, _ chan *trackerpb.FromAgent) bool { return !slices.Contains(names, name) })
}

// lookUp returns the names of all trackers, why dns+ names stand for none, and when to look
// again; 0: never.
func (c *Client) lookUp(ctx context.Context, found map[string][]string) (names []string, unresolved map[string]error, again time.Duration) {
	for _, t := range c.cfg.Trackers {
		name, ok := strings.CutPrefix(t, "dns+")
		if !ok {
			names = append(names, t)
			continue
		}
		addrs, err := lookupTracker(ctx, name, c.cfg.LookupHost)
		if err == nil && len(addrs) > 0 {
			found[t] = addrs
		}
		switch {
		case len(found[t]) == 0:
			if err == nil {
				err = errors.New("the name has no address")
			}
			if unresolved == nil {
				unresolved = map[string]error{}
			}
			unresolved[t] = err
			again = missingInterval
		case again == 0:
			again = resolveInterval
		}
		names = append(names, found[t]...)
	}
	slices.Sort(names)
	return slices.Compact(names), unresolved, again
}

// runStream keeps a stream to a tracker up until ctx is done.
func (c *Client) runStream(ctx context.Context, tracker string) {
	pauses := newPauses()
	for {
		welcomed, err := c.session(ctx, tracker)
		c.stepOf(ctx, EvDisconnected{Tracker: tracker, Err: err})
		select {
		case <-ctx.Done():
			return
		case <-time.After(pauses.after(welcomed, err)):
		}
	}
}

// pauses are those between attempts to connect with a tracker.
type pauses struct{ soon, late *backoff.ExponentialBackOff }

func newPauses() *pauses {
	b := backoff.ExponentialBackOff{InitialInterval: backoffMin, MaxInterval: backoffMax, Multiplier: 2, RandomizationFactor: backoffSpread}
	late := b
	late.InitialInterval = backoffMax
	return &pauses{soon: &b, late: &late}
}

// after returns the pause after a stream, or an attempt at one, that ended with err.
func (p *pauses) after(welcomed bool, err error) time.Duration {
	if welcomed {
		p.soon.Reset()
	}
	next := p.soon.NextBackOff()
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
		return backoffRefused
	case codes.Aborted, codes.ResourceExhausted: // another agent of the same name; the tracker is full
		return p.late.NextBackOff()
	}
	return next
}

// session makes one stream and serves it until it breaks.
func (c *Client) session(ctx context.Context, tracker string) (welcomed bool, err error) {
	sctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	fail := func(err error) error {
		if cause := context.Cause(sctx); cause != nil {
			err = status.Error(codes.Unavailable, cause.Error())
		}
		return fmt.Errorf("tracker %s: %w", tracker, explain(err, c.cfg.TLS != nil, "configure [identity]"))
	}
	conn, err := newConn(tracker, c.cfg.TLS, c.cfg.Dial,
		// One attempt: the pause after it is ours.
		grpc.WithConnectParams(connectParams(time.Minute, time.Minute)),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return false, fail(err)
	}
	defer conn.Close()
	watchdog := time.AfterFunc(connectTimeout, func() { cancel(errors.New("no answer")) })
	defer watchdog.Stop()
	stream, err := trackerpb.NewTrackerClient(conn).Connect(sctx)
	if err != nil {
		return false, fail(err)
	}
	// An error of Send is EOF; Recv has the reason.
	_ = stream.Send(&trackerpb.FromAgent{Hello: c.hello(tracker)})
	m, err := stream.Recv()
	if err != nil {
		return false, fail(err)
	}
	if v := m.Welcome.GetVersion(); v != trackerpb.Version {
		return false, fail(status.Errorf(codes.FailedPrecondition, "protocol version %d in Welcome, not %d", v, trackerpb.Version))
	}
	watchdog.Reset(silenceTimeout)

	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil) // before Wait
	out := c.open(ctx, tracker, m.Welcome)
	wg.Go(func() {
		for {
			c.stepOf(sctx, EvReady{Tracker: tracker})
			select {
			case <-sctx.Done():
				return
			case m := <-out:
				if err := stream.Send(m); err != nil {
					return // Recv fails as well
				}
			}
		}
	})
	for {
		c.stepOf(ctx, EvMessage{Tracker: tracker, Message: m})
		if m, err = stream.Recv(); err != nil {
			return true, fail(err)
		}
		watchdog.Reset(silenceTimeout)
	}
}

// open makes a stream known to the machine, and returns what is to be sent on it.
func (c *Client) open(ctx context.Context, tracker string, w *trackerpb.Welcome) <-chan *trackerpb.FromAgent {
	out := make(chan *trackerpb.FromAgent, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil {
		c.streams[tracker] = out
		c.perform(EvConnected{Tracker: tracker, Welcome: w})
	}
	return out
}

func (c *Client) hello(tracker string) *trackerpb.Hello {
	h := c.cfg.hello()
	h.Instance = c.instance
	c.mu.Lock()
	defer c.mu.Unlock()
	h.Blobs = c.machine.Announceable(tracker)
	return h
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// explain puts gRPC's errors into words, and says what it does not: that one end speaks TLS, and the
// other does not, or that there is no tracker. secure is this end; without is what there is to do if the other one wants TLS.
func explain(err error, secure bool, without string) error {
	said := status.Convert(err)
	// A tracker that waits for a TLS handshake closes the connection when it gets something else.
	plain := strings.Contains(said.Message(), "error reading server preface: EOF") ||
		strings.Contains(said.Message(), "error reading server preface") && strings.Contains(said.Message(), "connection reset")
	switch {
	case !secure && plain:
		return rpcerr.New(said.Code(), "it ends plain connections, as one does that speaks TLS: "+without)
	case strings.Contains(said.Message(), "error reading server preface: http2:"), said.Code() == codes.Unimplemented:
		return rpcerr.New(said.Code(), "something answers there that is no tracker: this is another port, such as an origin's")
	case secure && strings.Contains(said.Message(), "first record does not look like a TLS handshake"):
		return rpcerr.New(said.Code(), "it does not speak TLS, and this side does: it has no [identity], or this is another port")
	}
	return rpcerr.Plain(err)
}

// newConn returns a connection to a tracker that is not made yet; secure is nil for a
// plain one.
func newConn(
	tracker string, secure *tls.Config, dial func(context.Context, string) (net.Conn, error), more ...grpc.DialOption,
) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if secure != nil {
		creds = credentials.NewTLS(secure)
	}
	return grpc.NewClient("passthrough:///"+tracker, append(more,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
	)...)
}
