package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Tap stands between a containerd and its agent, passes every gRPC message on
// as it is, and keeps a record of the content service's calls.
type Tap struct {
	Socket string

	server *grpc.Server
	conn   *grpc.ClientConn

	mu    sync.Mutex
	calls []*Call
}

// Call is one call of the content service, or an Apply.
type Call struct {
	Method    string // "Info", "Write", …
	Namespace string
	Start     time.Time
	Took      time.Duration // until the call ended; Write: its stream
	Err       error
	// Standing: it began on a connection to the agent that stood, as far as anybody could see.
	Standing bool

	Digest  string   // of an Info
	Session *Session // of a Write
}

// Session is what went over one Write stream.
type Session struct {
	Ref   string
	Total int64 // as the opening said
	Steps []Step
}

// Step is one request on a Write stream and its answer.
type Step struct {
	Action   contentapi.WriteAction
	Offset   int64 // asked
	Total    int64 // asked
	Expected string
	Data     int // bytes of data

	Answered bool
	At       int64  // the answer's Offset
	Of       int64  // the answer's Total
	Digest   string // the answer's
	Took     time.Duration
}

// String is the session as lines of requests and answers, with offsets as
// fractions of the total where they are 0 or all, for comparison.
func (s *Session) String() string {
	var b strings.Builder
	off := func(n int64) string {
		switch n {
		case 0:
			return "0"
		case s.Total:
			return "total"
		}
		return fmt.Sprint(n)
	}
	for _, st := range s.Steps {
		if st.Action == contentapi.WriteAction_WRITE {
			fmt.Fprintf(&b, "WRITE at %s", off(st.Offset))
		} else {
			fmt.Fprintf(&b, "%s at %s of %s", st.Action, off(st.Offset), off(st.Total))
			if st.Expected != "" {
				b.WriteString(" expected")
			}
		}
		if st.Answered {
			fmt.Fprintf(&b, " → %s of %s", off(st.At), off(st.Of))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// NewTap starts a tap in front of the node's agent, which the drop-in of later
// StartAgent calls names instead of the agent's socket.
func (n *Node) NewTap() (*Tap, error) {
	t := &Tap{Socket: filepath.Join(n.Dir, "tap.sock")}
	// A connection has to stand as soon as containerd wants it to only on request: how long an
	// agent takes to start depends on what else the machine does.
	params := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: hangs}
	params.Backoff.MaxDelay = 3 * time.Second
	if os.Getenv("CAPELIN_TEST_STRICT") != "" {
		params.MinConnectTimeout = 0
	}
	var err error
	t.conn, err = grpc.NewClient("unix://"+n.AgentSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(params),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	_ = os.Remove(t.Socket)
	l, err := net.Listen("unix", t.Socket)
	if err != nil {
		return nil, err
	}
	t.server = grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(t.handle),
		grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	n.tap = t
	n.cluster.onClose(func() {
		t.server.Stop()
		t.conn.Close()
	})
	go t.server.Serve(l) //nolint:errcheck // ends with Stop
	return t, nil
}

// Calls returns a copy of the record. Sessions still running are as they are now.
func (t *Tap) Calls() []Call {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := make([]Call, len(t.calls))
	for i, c := range t.calls {
		s[i] = *c
		if c.Session != nil {
			se := *c.Session
			se.Steps = append([]Step(nil), se.Steps...)
			s[i].Session = &se
		}
	}
	return s
}

// Sessions returns the Write streams whose ref contains part.
func (t *Tap) Sessions(part string) []Session {
	var s []Session
	for _, c := range t.Calls() {
		if c.Session != nil && strings.Contains(c.Session.Ref, part) {
			s = append(s, *c.Session)
		}
	}
	return s
}

// Saw reports whether a call named the digest and was answered.
func (t *Tap) Saw(method, digest string) bool {
	for _, c := range t.Calls() {
		if c.Method == method && c.Digest == digest && c.Took > 0 && c.Err == nil {
			return true
		}
	}
	return false
}

// Reset forgets the record.
func (t *Tap) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls = nil
}

func (t *Tap) handle(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	md, _ := metadata.FromIncomingContext(in.Context())
	c := &Call{Method: method[strings.LastIndexByte(method, '/')+1:], Start: time.Now()}
	if ns := md.Get("containerd-namespace-grpc"); len(ns) > 0 {
		c.Namespace = ns[0]
	}
	c.Standing = t.conn.GetState() == connectivity.Ready
	content := strings.HasPrefix(method, "/containerd.services.content.v1.Content/") || c.Method == "Apply"
	if content && c.Method == "Write" {
		c.Session = &Session{}
	}
	if content {
		t.mu.Lock()
		t.calls = append(t.calls, c)
		t.mu.Unlock()
	}
	err := t.pump(method, md, in, c)
	t.mu.Lock()
	c.Took, c.Err = time.Since(c.Start), err
	t.mu.Unlock()
	return err
}

func (t *Tap) pump(method string, md metadata.MD, in grpc.ServerStream, c *Call) error {
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(in.Context(), md))
	defer cancel()
	out, err := t.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			var m []byte
			if err := in.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					_ = out.CloseSend()
				} else {
					cancel()
				}
				return
			}
			t.request(c, m)
			if out.SendMsg(&m) != nil {
				return
			}
		}
	}()
	for {
		var m []byte
		if err := out.RecvMsg(&m); err != nil {
			in.SetTrailer(out.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return status.Convert(err).Err()
		}
		t.response(c, m)
		if err := in.SendMsg(&m); err != nil {
			return err
		}
	}
}

func (t *Tap) request(c *Call, m []byte) {
	if c.Method == "Info" {
		var r contentapi.InfoRequest
		if proto.Unmarshal(m, &r) == nil {
			t.mu.Lock()
			c.Digest = r.Digest
			t.mu.Unlock()
		}
	}
	if c.Session == nil {
		return
	}
	var r contentapi.WriteContentRequest
	if proto.Unmarshal(m, &r) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Session.Ref == "" {
		c.Session.Ref, c.Session.Total = r.Ref, r.Total
	}
	c.Session.Steps = append(c.Session.Steps, Step{Action: r.Action, Offset: r.Offset, Total: r.Total, Expected: r.Expected,
		Data: len(r.Data), Took: time.Duration(time.Now().UnixNano())})
}

func (t *Tap) response(c *Call, m []byte) {
	if c.Session == nil {
		return
	}
	var r contentapi.WriteContentResponse
	if proto.Unmarshal(m, &r) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c.Session.Steps {
		if s := &c.Session.Steps[i]; !s.Answered {
			s.Answered, s.At, s.Of, s.Digest = true, r.Offset, r.Total, r.Digest
			s.Took = time.Duration(time.Now().UnixNano()) - s.Took
			return
		}
	}
}

// rawCodec passes messages as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}

func (rawCodec) Name() string { return "proto" }
