package tracker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/capelin-io/capelin/control/ring"
	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/rpcerr"
	"github.com/capelin-io/capelin/swarm/piece"
	"github.com/capelin-io/capelin/swarm/wire"
)

// ControlConfig says where the trackers of a cluster are.
type ControlConfig struct {
	// Trackers are as in Config, written in the same way as nodes have them: only
	// then does Members ask the right ones.
	Trackers []string
	TLS      *tls.Config // nil: plain connections
	// Dial makes connections; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// LookupHost resolves dns+ names; nil: net.DefaultResolver.
	LookupHost func(ctx context.Context, host string) ([]string, error)
}

// Control asks trackers on behalf of an operator or a gateway. Its methods may be
// called by any number of goroutines. Errors are gRPC statuses, and name the
// tracker.
type Control struct {
	cfg ControlConfig

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by tracker
}

// Dial returns a Control of the trackers; tls is nil for plain connections.
// Nothing is connected yet.
func Dial(trackers []string, tls *tls.Config) (*Control, error) {
	return NewControl(ControlConfig{Trackers: trackers, TLS: tls})
}

// NewControl is Dial with more to choose.
func NewControl(cfg ControlConfig) (*Control, error) {
	if len(cfg.Trackers) == 0 {
		return nil, errors.New("no trackers are configured")
	}
	if err := checkTrackers(cfg.Trackers); err != nil {
		return nil, err
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.LookupHost == nil {
		cfg.LookupHost = net.DefaultResolver.LookupHost
	}
	return &Control{cfg: cfg, conns: map[string]*grpc.ClientConn{}}, nil
}

// Close ends all connections and calls.
func (c *Control) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	clear(c.conns)
	return errors.Join(errs...)
}

// Node is a node that is connected to some tracker.
type Node struct {
	Name     string
	Zone     string
	Role     wire.Role
	Addr     string // of its swarm listener; empty: it cannot be dialled
	Software string
	Since    time.Time // when its oldest stream began
	Blobs    int       // that it has or wants; about, while a tracker is away
	Wants    int       // of these, likewise
}

// Nodes returns the connected nodes, ordered by name: all that any tracker knows.
// It is an error only if no tracker answers.
func (c *Control) Nodes(ctx context.Context) ([]Node, error) {
	names, err := c.names(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]*Node{}
	n, err := c.all(ctx, names, func(ctx context.Context, client trackerpb.ControlClient) (func(), error) {
		var got []*trackerpb.Node
		stream, err := client.ListNodes(ctx, &trackerpb.ListNodesRequest{})
		if err == nil {
			err = receive(stream, func(m *trackerpb.ListNodesResponse) { got = append(got, m.Nodes...) })
		}
		return func() {
			for _, m := range got {
				merge(all, m)
			}
		}, err
	})
	if err != nil {
		return nil, err
	}
	nodes := make([]Node, 0, len(all))
	told := min(n, 2) // each blob is told to so many of them
	for _, node := range all {
		node.Blobs = (node.Blobs + told - 1) / told
		node.Wants = (node.Wants + told - 1) / told
		nodes = append(nodes, *node)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes, nil
}

func merge(all map[string]*Node, m *trackerpb.Node) {
	n := all[m.Node]
	if n == nil {
		n = &Node{Name: m.Node, Zone: m.Zone, Role: wire.Role(m.Role), Addr: m.Addr, Software: m.Software}
		all[m.Node] = n
	}
	if since := time.UnixMilli(m.SinceUnixMs); n.Since.IsZero() || since.Before(n.Since) {
		n.Since = since
	}
	n.Blobs += int(m.Blobs)
	n.Wants += int(m.Wants)
}

// Member is what is known of one node in the swarm of a blob.
type Member struct {
	Node     string
	Complete bool
	Partial  bool
	Want     bool
	Lease    bool // it fetches the blob from upstream
}

// Members returns who has or wants a blob, ordered by name, as the blob's two
// trackers know it. Of more than a few hundred nodes with the whole blob they may
// not know all. It is an error only if neither of them answers.
func (c *Control) Members(ctx context.Context, id piece.ID) ([]Member, error) {
	names, err := c.names(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]Member{}
	_, err = c.all(ctx, ring.Top(names, id.Digest(), 2), func(ctx context.Context, client trackerpb.ControlClient) (func(), error) {
		var got []*trackerpb.Member
		stream, err := client.Members(ctx, &trackerpb.MembersRequest{Blob: trackerpb.FromID(id)})
		if err == nil {
			err = receive(stream, func(m *trackerpb.MembersResponse) { got = append(got, m.Members...) })
		}
		return func() {
			for _, m := range got {
				x := all[m.Node]
				all[m.Node] = Member{
					Node: m.Node, Complete: x.Complete || m.Complete, Partial: x.Partial || m.Partial,
					Want: x.Want || m.Want, Lease: x.Lease || m.Lease,
				}
			}
		}, err
	})
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Member) int { return strings.Compare(a.Node, b.Node) }), nil
}

// Selection chooses among the connected nodes: those that match every list which
// is not empty. If Nodes and Roles are empty these are agents, but no origins.
type Selection struct {
	Nodes []string
	Zones []string
	Roles []wire.Role
	All   bool // must be set if every list is empty
}

func (s Selection) wire() *trackerpb.Selection {
	m := &trackerpb.Selection{Nodes: s.Nodes, Zones: s.Zones, All: s.All}
	for _, r := range s.Roles {
		m.Roles = append(m.Roles, trackerpb.Role(r))
	}
	return m
}

// PreheatRequest says what is to be where.
type PreheatRequest struct {
	Blobs  []piece.ID // lowest layer first, at most trackerpb.MaxBatch
	Nodes  Selection
	AtOnce int // nodes that work at the same time; 0: all
	// Patience is how long a node may say nothing; 0: two minutes.
	Patience time.Duration
}

// Progress is how far a Preheat or Drop is.
type Progress struct {
	Nodes, Done, Failed int
	Bytes, Total        int64 // of all nodes
	// Results are of nodes that have finished since the last Progress.
	Results []NodeResult
}

// NodeResult is how one node's part ended.
type NodeResult struct {
	Node  string
	Error string // empty: done
	// Blobs are some of those that are not complete there (Preheat), or that
	// containerd holds (Drop).
	Blobs []piece.ID
}

// Preheat makes nodes fetch blobs into their caches, from each other and from
// origins, and calls told (unless it is nil) with how that goes until every chosen
// node has all of them or has failed; it returns the last Progress, without Results.
// What nodes could not do is no error of Preheat's. If a tracker goes away meanwhile,
// another one is asked for everything anew, and nodes are told of again.
//
// When ctx ends, nodes finish what they have begun.
func (c *Control) Preheat(ctx context.Context, r PreheatRequest, told func(Progress)) (Progress, error) {
	m := &trackerpb.PreheatRequest{
		Blobs: blobNames(r.Blobs), Nodes: r.Nodes.wire(),
		AtOnce: uint32(max(r.AtOnce, 0)), PatienceMs: uint32(min(max(r.Patience, 0), 24*time.Hour).Milliseconds()),
	}
	return c.operate(ctx, told, func(ctx context.Context, client trackerpb.ControlClient) (progressStream, error) {
		return client.Preheat(ctx, m)
	})
}

// Drop makes nodes forget blobs that containerd does not hold there; otherwise it is
// as Preheat.
func (c *Control) Drop(ctx context.Context, blobs []piece.ID, nodes Selection, told func(Progress)) (Progress, error) {
	m := &trackerpb.DropRequest{Blobs: blobNames(blobs), Nodes: nodes.wire()}
	return c.operate(ctx, told, func(ctx context.Context, client trackerpb.ControlClient) (progressStream, error) {
		return client.Drop(ctx, m)
	})
}

func blobNames(ids []piece.ID) []*trackerpb.Blob {
	blobs := make([]*trackerpb.Blob, len(ids))
	for i, id := range ids {
		blobs[i] = trackerpb.FromID(id)
	}
	return blobs
}

// progressStream is a tracker's answer to an operation.
type progressStream = grpc.ServerStreamingClient[trackerpb.Progress]

// operate runs an operation on one tracker: nodes have streams to all of them.
func (c *Control) operate(
	ctx context.Context, told func(Progress), start func(context.Context, trackerpb.ControlClient) (progressStream, error),
) (Progress, error) {
	names, err := c.names(ctx)
	if err != nil {
		return Progress{}, err
	}
	var errs []error
	for _, name := range names {
		var last Progress
		err := c.call(ctx, name, func(ctx context.Context, client trackerpb.ControlClient) error {
			stream, err := start(ctx, client)
			if err != nil {
				return err
			}
			return receive(stream, func(m *trackerpb.Progress) {
				last = progressOf(m)
				if told != nil {
					told(last)
				}
				last.Results = nil
			})
		})
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return last, err
		}
		errs = append(errs, err)
	}
	return Progress{}, errors.Join(errs...)
}

func progressOf(m *trackerpb.Progress) Progress {
	p := Progress{Nodes: int(m.Nodes), Done: int(m.Done), Failed: int(m.Failed), Bytes: m.Bytes, Total: m.Total}
	for _, r := range m.Results {
		n := NodeResult{Node: r.Node, Error: r.Error}
		for _, b := range r.Blobs {
			if id, err := b.GetBlob().ID(); err == nil {
				n.Blobs = append(n.Blobs, id)
			}
		}
		p.Results = append(p.Results, n)
	}
	return p
}

// names returns the trackers' names, as nodes know them.
func (c *Control) names(ctx context.Context) ([]string, error) {
	names, err := resolve(ctx, c.cfg.Trackers, c.cfg.LookupHost)
	if len(names) == 0 {
		return nil, rpcerr.New(codes.Unavailable, fmt.Sprintf("no tracker is found: %v", err))
	}
	return names, nil
}

// all calls several trackers at once. got is given to those calls that succeed,
// one after the other; n is how many did. It is an error only if none does.
func (c *Control) all(
	ctx context.Context, names []string, f func(context.Context, trackerpb.ControlClient) (got func(), err error),
) (n int, err error) {
	var wg sync.WaitGroup
	got := make([]func(), len(names))
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() {
			errs[i] = c.call(ctx, name, func(ctx context.Context, client trackerpb.ControlClient) (err error) {
				got[i], err = f(ctx, client)
				return err
			})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			got[i]()
			n++
		}
	}
	if n == 0 {
		return 0, errors.Join(errs...)
	}
	return n, nil
}

// call makes one call to a tracker.
func (c *Control) call(ctx context.Context, name string, f func(context.Context, trackerpb.ControlClient) error) error {
	conn, err := c.conn(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := f(ctx, trackerpb.NewControlClient(conn)); err != nil {
		return fmt.Errorf("tracker %s: %w", name, explain(err, c.cfg.TLS != nil, "give --ca, --cert and --key"))
	}
	return nil
}

func (c *Control) conn(name string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[name]; conn != nil {
		return conn, nil
	}
	conn, err := newConn(name, c.cfg.TLS, c.cfg.Dial,
		grpc.WithConnectParams(connectParams(100*time.Millisecond, 2*time.Second)),
		// A tracker whose machine is gone must not hold a call for ever.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithIdleTimeout(time.Minute),
	)
	if err != nil {
		return nil, fmt.Errorf("tracker %s: %w", name, err)
	}
	c.conns[name] = conn
	return conn, nil
}

// receive gives every message of a stream to f.
func receive[M any](stream grpc.ServerStreamingClient[M], f func(*M)) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f(m)
	}
}

// connectParams are gRPC's, with pauses from min to max between attempts.
func connectParams(min, max time.Duration) grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: min, Multiplier: 2, MaxDelay: max},
		MinConnectTimeout: connectTimeout,
	}
}
