package trackerd

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/trackerd/state"
)

// Timing that is no policy; control/PROTOCOL.md, "Timing".
const (
	pingInterval = 5 * time.Second // the tracker sends something at least this often
	helloTimeout = 5 * time.Second
)

const (
	// maxPending is how many elements may wait for an agent that does not read;
	// then its stream is ended.
	maxPending = 50_000
	// bulkBatch is how many announcements make a batch one that waits its turn.
	bulkBatch = 50
	// maxPeersLists is how many Peers are in one message, so that it stays below
	// the 4 MiB that an agent accepts, whatever the names in it.
	maxPeersLists = 100

	// A node is told how long its answer may take if all ask at once, about several blobs each: 15,000 that ask about one
	// have the last answer after 3.8 s on two processors (make bench-tracker).
	busyPerNode = time.Millisecond
	busyStep    = 100 * time.Millisecond
)

// server connects streams and the state machine.
type server struct {
	trackerpb.UnimplementedTrackerServer
	ctx        context.Context // done when the tracker stops
	cluster    string
	maxStreams int
	wg         sync.WaitGroup // receivers
	control    *control

	// bulk is taken before mu for batches of announcements, so that at most one of
	// them competes for mu with somebody who waits for an answer: after a restart
	// 15,000 agents announce everything at once.
	bulk     sync.Mutex
	decoding chan struct{} // a token per large message

	busyMs atomic.Uint32 // of ToAgent

	mu      sync.Mutex // never held while anything blocks
	machine *state.Tracker
	next    state.Stream
	streams map[state.Stream]*stream
	opened  int // streams whose Hello may not have come yet
	timer   *time.Timer
	refused uint64
}

// stream is one agent's.
type stream struct {
	id   state.Stream
	node string // set before it is among server.streams
	// As seen from here; see state.EvOpen.
	machine string
	near    []string
	from    string
	wake    chan struct{} // 1-buffered: queue or end changed

	// Guarded by server.mu.
	queue   []*trackerpb.ToAgent
	pending int   // elements in queue
	left    int   // blobs that it said it would announce and has not yet
	end     error // why the stream must end
}

func newServer(ctx context.Context, cfg *Config, software string) *server {
	s := &server{
		decoding:   make(chan struct{}, maxDecoding),
		ctx:        ctx,
		cluster:    cfg.Cluster,
		maxStreams: cfg.MaxStreams,
		machine:    state.New(cfg.policy(software), rand.Uint64(), time.Now()),
		streams:    map[state.Stream]*stream{},
		timer:      time.NewTimer(time.Hour),
	}
	s.control = newControl(s)
	return s
}

// counted notes how many streams there are. s.mu is held.
func (s *server) counted() {
	busy := (time.Duration(len(s.streams))*busyPerNode + busyStep - 1).Truncate(busyStep)
	s.busyMs.Store(uint32(max(busy, busyStep).Milliseconds()))
}

// run drives the machine's clock until ctx is done.
func (s *server) run(ctx context.Context) error {
	defer s.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.timer.C:
			s.mu.Lock()
			s.step(state.EvTick{})
			s.mu.Unlock()
		}
	}
}

// step runs the machine and performs its actions. s.mu is held.
func (s *server) step(ev state.Event) {
	if s.ctx.Err() != nil {
		return // streams end one by one now: the leases of the first are not to move to the others
	}
	now := time.Now()
	for _, act := range s.machine.Step(now, ev) {
		switch act := act.(type) {
		case state.ActSend:
			if st := s.streams[act.Stream]; st != nil {
				st.push(act.Message)
			}
		case state.ActClose:
			if st := s.streams[act.Stream]; st != nil {
				st.stop(status.Error(codes.Aborted, "the node connected anew"))
			}
		case state.ActReport:
			s.log(act.Report)
		}
	}
	if d := s.machine.Deadline(); !d.IsZero() {
		s.timer.Reset(max(d.Sub(now), 0))
	}
}

func (s *server) log(r state.Report) {
	f := log.Fields{}
	if r.Node != "" {
		f["node"] = r.Node
	}
	if r.ID.Size > 0 {
		f["blob"] = r.ID.Digest()
		f["size"] = r.ID.Size
	}
	if r.Text != "" {
		f["detail"] = r.Text
	}
	l := log.G(s.ctx).WithFields(f)
	switch r.Kind {
	case state.ReportGranted, state.ReportDone:
		l.Debug(r.Kind.String())
	case state.ReportMoved, state.ReportFailed, state.ReportReplaced:
		l.Info(r.Kind.String())
	default:
		l.Warn(r.Kind.String())
	}
}

func elements(m *trackerpb.ToAgent) int {
	n := 1 + len(m.Sums) + len(m.Verdicts) + len(m.Commands) + len(m.Lookups)
	for _, e := range m.Enough {
		n += 1 + e.Blobs.Len()
	}
	for _, a := range m.Accepts {
		n += 1 + len(a.Blobs)
	}
	for _, p := range m.Peers {
		n += 1 + len(p.Peers) + len(p.Gone)
	}
	return n
}

func (st *stream) push(m *trackerpb.ToAgent) {
	if st.end != nil {
		return
	}
	for _, a := range m.Accepts {
		st.left += a.Count()
	}
	st.pending += elements(m)
	if st.pending > maxPending {
		st.stop(status.Error(codes.ResourceExhausted, "the agent does not read what it is sent"))
		return
	}
	st.queue = append(st.queue, m)
	st.signal()
}

func (st *stream) stop(err error) {
	if st.end == nil {
		st.end = err
		st.queue, st.pending = nil, 0
		st.signal()
	}
}

func (st *stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// Connect serves a stream: this goroutine sends, another one receives, because
// the stream ends when this one returns, and that is what frees a blocked Recv.
func (s *server) Connect(g trackerpb.Tracker_ConnectServer) error {
	s.mu.Lock()
	if s.opened >= s.maxStreams {
		s.refused++
		s.mu.Unlock()
		return status.Errorf(codes.ResourceExhausted, "the tracker has its %d streams", s.maxStreams)
	}
	s.opened++
	s.next++
	st := &stream{id: s.next, wake: make(chan struct{}, 1)}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.opened--
		if s.streams[st.id] != nil {
			delete(s.streams, st.id)
			s.counted()
			s.step(state.EvClosed{Stream: st.id})
			s.control.disconnected(st.node, st.id)
		}
	}()

	hello := make(chan struct{})
	s.wg.Go(func() {
		err := s.receive(g, st, hello)
		s.mu.Lock()
		defer s.mu.Unlock()
		st.stop(err)
	})
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	timeout := timer.C
	ping := time.NewTimer(pingInterval)
	defer ping.Stop()
	told := uint32(0)
	send := func(m *trackerpb.ToAgent) error {
		if busy := s.busyMs.Load(); busy != told {
			told, m.BusyMs = busy, busy
		}
		return g.Send(m)
	}
	for {
		select {
		case <-g.Context().Done():
			return status.FromContextError(g.Context().Err()).Err()
		case <-hello:
			hello, timeout = nil, nil
		case <-timeout:
			return status.Error(codes.DeadlineExceeded, "no hello")
		case <-ping.C:
			if hello == nil { // it was welcomed
				if err := send(&trackerpb.ToAgent{}); err != nil {
					return err
				}
			}
			ping.Reset(pingInterval)
		case <-st.wake:
			s.mu.Lock()
			queue, end := st.queue, st.end
			st.queue, st.pending = nil, 0
			s.mu.Unlock()
			if errors.Is(end, io.EOF) {
				return nil // the agent said good-bye
			}
			if end != nil {
				return end
			}
			for _, m := range queue {
				for m != nil {
					var rest *trackerpb.ToAgent
					m, rest = split(m)
					if err := send(m); err != nil {
						return err
					}
					m = rest
				}
			}
			ping.Reset(pingInterval)
		}
	}
}

// split cuts a message that has too many lists of peers. The parts keep the
// order that a receiver takes things in: welcome and sums first, verdicts last.
func split(m *trackerpb.ToAgent) (first, rest *trackerpb.ToAgent) {
	if len(m.Peers) <= maxPeersLists {
		return m, nil
	}
	first = &trackerpb.ToAgent{Welcome: m.Welcome, Sums: m.Sums, Peers: m.Peers[:maxPeersLists]}
	rest = &trackerpb.ToAgent{
		Peers: m.Peers[maxPeersLists:], Verdicts: m.Verdicts, Enough: m.Enough,
		Accepts: m.Accepts, Commands: m.Commands, Lookups: m.Lookups,
	}
	return first, rest
}

// recv receives a message. A large one is decoded when one of a few places for that
// is free, which done gives back: decoded it is several times as large, and after a
// restart all agents send all they have at once.
func (s *server) recv(g trackerpb.Tracker_ConnectServer) (m *trackerpb.FromAgent, done func(), err error) {
	var f frame
	if err := g.RecvMsg(&f); err != nil {
		return nil, func() {}, err
	}
	defer f.data.Free()
	done = func() {}
	if f.data.Len() > largeFrame {
		select {
		case s.decoding <- struct{}{}:
		case <-g.Context().Done():
			return nil, done, g.Context().Err()
		}
		done = sync.OnceFunc(func() { <-s.decoding })
	}
	data := f.data.MaterializeToBuffer(frames)
	defer data.Free()
	m = &trackerpb.FromAgent{}
	if err := proto.Unmarshal(data.ReadOnlyData(), m); err != nil {
		done()
		return nil, done, s.refuse(status.Error(codes.InvalidArgument, err.Error()))
	}
	return m, done, nil
}

// frame is a message that is not decoded yet.
type frame struct{ data mem.BufferSlice }

// frameCodec is protobuf's, and keeps what is received into a frame as it is.
type frameCodec struct{ encoding.CodecV2 }

var protoCodec = encoding.GetCodecV2(grpcproto.Name)

// frames is memory to decode from. gRPC's own pool would clear 1 MiB for half an
// inventory.
var frames = mem.NewTieredBufferPool(4<<10, 16<<10, 40<<10, 128<<10, 1<<20)

func (c frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

const (
	largeFrame  = 4 << 10 // bytes
	maxDecoding = 16      // large messages that are decoded and not yet taken in, at once
)

// receive feeds what an agent sends to the machine, and returns why that ended.
// hello is closed once the first message is accepted.
func (s *server) receive(g trackerpb.Tracker_ConnectServer, st *stream, hello chan struct{}) error {
	m, done, err := s.recv(g)
	if err != nil {
		return err
	}
	defer func() { done() }()
	h := m.GetHello()
	if h.GetVersion() != trackerpb.Version && h != nil {
		return s.refuse(status.Errorf(codes.FailedPrecondition, "protocol version %d is not spoken here, only %d",
			h.GetVersion(), trackerpb.Version))
	}
	if err := trackerpb.CheckHello(h); err != nil {
		return s.refuse(status.Error(codes.InvalidArgument, err.Error()))
	}
	if h.Cluster != s.cluster {
		return s.refuse(status.Errorf(codes.FailedPrecondition, "this is cluster %q, not %q", s.cluster, h.Cluster))
	}
	if err := entitled(g.Context(), h); err != nil {
		return s.refuse(err)
	}
	st.locate(g.Context(), h)
	arrived := streamBegan(g.Context())
	for first := true; ; first = false {
		if !first {
			done()
			if m, done, err = s.recv(g); err != nil {
				return err
			}
			if m.Hello != nil {
				return s.refuse(status.Error(codes.InvalidArgument, "a second hello"))
			}
		}
		if err := trackerpb.CheckBatch(m); err != nil {
			return s.refuse(status.Error(codes.InvalidArgument, err.Error()))
		}
		for _, r := range m.Results {
			if !s.control.result(h.Node, r) {
				log.G(s.ctx).WithFields(log.Fields{"node": h.Node, "command": r.Id, "error": r.Error}).Debug("a command's result that nobody waits for")
			}
		}
		all, err := s.take(st, m, h, first)
		if err != nil {
			return err
		}
		if first {
			close(hello)
		}
		if all {
			arrived()
		}
	}
}

// peerID returns who a call comes from; ok is false if there is no identity on this
// port.
func peerID(ctx context.Context) (id identity.ID, ok bool, err error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return id, false, status.Error(codes.Internal, "the call has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return id, false, nil
	}
	if id, err = identity.PeerID(info.State); err != nil {
		return id, false, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, true, nil
}

// entitled reports why the other end may not be the node that its Hello names: with
// identity a node speaks for itself only, and its certificate has its role.
func entitled(ctx context.Context, h *trackerpb.Hello) error {
	id, ok, err := peerID(ctx)
	if err != nil || !ok {
		return err
	}
	role := identity.RoleNode
	if h.Role == trackerpb.Role_ROLE_ORIGIN {
		role = identity.RoleOrigin
	}
	if id.Name != h.Node || !id.Has(role) {
		return status.Errorf(codes.PermissionDenied, "%s may not be %s %q", id, role, h.Node)
	}
	return nil
}

// take gives a batch to the machine, after the Hello if it is the first. It reports
// whether the agent has announced all that it is to announce at first.
func (s *server) take(st *stream, m *trackerpb.FromAgent, h *trackerpb.Hello, first bool) (all bool, err error) {
	if m.Announced() > bulkBatch && len(m.Wants) == 0 {
		s.bulk.Lock()
		defer s.bulk.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.end != nil {
		return false, st.end
	}
	if first {
		st.node = h.Node
		st.left = int(h.Blobs)
		s.streams[st.id] = st
		s.counted()
		s.step(state.EvOpen{Stream: st.id, Hello: h, Machine: st.machine, Near: st.near, From: st.from})
		s.control.connected(h.Node, st.id)
	}
	st.left -= m.Announced()
	s.step(state.EvBatch{Stream: st.id, Batch: m})
	return st.left <= 0, nil
}

func (s *server) refuse(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
	return err
}
