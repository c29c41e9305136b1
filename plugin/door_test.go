package plugin

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// room is what is behind a door: Info is answered at once, Apply when it is released.
type room struct {
	contentapi.UnimplementedContentServer
	diffapi.UnimplementedDiffServer
	inside  chan struct{} // gets one for each Apply that has begun
	release chan struct{}
	infos   atomic.Int64
}

func newRoom() *room { return &room{inside: make(chan struct{}, 10), release: make(chan struct{})} }

func (r *room) Info(context.Context, *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	r.infos.Add(1)
	return &contentapi.InfoResponse{}, nil
}

func (r *room) Apply(ctx context.Context, _ *diffapi.ApplyRequest) (*diffapi.ApplyResponse, error) {
	r.inside <- struct{}{}
	select {
	case <-r.release:
		return &diffapi.ApplyResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// street is a socket that outlives doors, as systemd's do, and a client on it.
func street(t *testing.T) (net.Listener, *grpc.ClientConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Hour}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return ln, conn
}

func doorOn(t *testing.T, ln net.Listener) *door {
	t.Helper()
	d, err := newDoor(ln, true, newMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	d.linger = 10 * time.Millisecond
	return d
}

func info(conn *grpc.ClientConn) error {
	_, err := contentapi.NewContentClient(conn).Info(context.Background(), &contentapi.InfoRequest{Digest: "x"})
	return err
}

// A connection stands before there is anything to answer its calls, which wait.
func TestDoorBeforeItOpens(t *testing.T) {
	t.Parallel()
	ln, conn := street(t)
	d := doorOn(t, ln)
	defer d.close()
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		if !conn.WaitForStateChange(t.Context(), s) {
			t.Fatal("it never stood")
		}
	}
	r := newRoom()
	answered := make(chan error, 1)
	go func() { answered <- info(conn) }()
	select {
	case err := <-answered:
		t.Fatalf("answered by nobody: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	d.open(r, r)
	if err := <-answered; err != nil || r.infos.Load() != 1 {
		t.Errorf("%v, %d calls answered", err, r.infos.Load())
	}
}

// An agent that cannot open its store lets nobody wait.
func TestDoorNeverOpens(t *testing.T) {
	t.Parallel()
	ln, conn := street(t)
	d := doorOn(t, ln)
	answered := make(chan error, 1)
	go func() { answered <- info(conn) }()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		conn.WaitForStateChange(t.Context(), s)
	}
	ln.Close() // there is no next one
	d.close()
	if err := <-answered; err == nil {
		t.Error("answered by nobody")
	}
}

// While a call takes long the door does not close: all others are answered. Whoever comes after that waits
// for the next door, and none of the calls fails.
func TestDoorShuts(t *testing.T) {
	t.Parallel()
	ln, conn := street(t)
	d, r := doorOn(t, ln), newRoom()
	d.open(r, r)
	applied := make(chan error, 2)
	apply := func() {
		_, err := diffapi.NewDiffClient(conn).Apply(context.Background(), &diffapi.ApplyRequest{})
		applied <- err
	}
	go apply()
	<-r.inside
	shut := make(chan error, 1)
	go func() { shut <- d.shut(t.Context(), time.Hour) }()
	enough, calling := make(chan struct{}), make(chan error, 4)
	for range cap(calling) {
		go func() {
			for {
				select {
				case <-enough:
					calling <- nil
					return
				default:
				}
				if err := info(conn); err != nil {
					calling <- err
					return
				}
			}
		}()
	}
	answers := func(r *room) { // a hundred more
		t.Helper()
		for n := r.infos.Load(); r.infos.Load() < n+100; {
			select {
			case err := <-calling:
				t.Fatalf("a call failed: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
	}
	answers(r)
	go apply() // one more, on a later turn
	<-r.inside
	r.release <- struct{}{}
	if err := <-applied; err != nil {
		t.Error(err)
	}
	answers(r)
	select {
	case err := <-shut:
		t.Fatalf("shut while a call runs: %v", err)
	default:
	}
	close(r.release)
	if err := <-applied; err != nil {
		t.Error(err)
	}
	if err := <-shut; err != nil {
		t.Error(err)
	}
	d.close()

	next, r2 := doorOn(t, ln), newRoom()
	defer next.close()
	next.open(r2, r2)
	answers(r2)
	close(enough)
	for range cap(calling) {
		if err := <-calling; err != nil {
			t.Errorf("a call failed: %v", err)
		}
	}
}

// What does not end is broken off in the end.
func TestDoorLosesPatience(t *testing.T) {
	t.Parallel()
	ln, conn := street(t)
	d, r := doorOn(t, ln), newRoom()
	defer d.close()
	d.open(r, r)
	applied := make(chan error, 1)
	go func() {
		_, err := diffapi.NewDiffClient(conn).Apply(context.Background(), &diffapi.ApplyRequest{})
		applied <- err
	}()
	<-r.inside
	if err := d.shut(t.Context(), 30*time.Millisecond); err != nil {
		t.Error(err)
	}
	if err := <-applied; err == nil {
		t.Error("a call ended well that nobody let go on")
	}
}

// A connection that was accepted is looked at before its turn ends: the server would drop it, and
// with it calls that the next door would answer.
func TestTurnHolds(t *testing.T) {
	t.Parallel()
	ln, conn := street(t)
	turn := &turn{ln: ln.(unixListener), parked: make(chan struct{}), ended: make(chan struct{}), closed: make(chan struct{})}
	conn.Connect()
	fresh, err := turn.Accept()
	if err != nil {
		t.Fatal(err)
	}
	last := make(chan error, 1)
	go func() {
		_, err := turn.Accept()
		last <- err
	}()
	held := make(chan struct{})
	go func() {
		turn.hold()
		close(held)
	}()
	select {
	case <-held:
		t.Error("the turn could end before its connection was looked at")
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := fresh.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	<-held
	turn.Close()
	if err := <-last; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a turn that has ended accepts: %v", err)
	}
}
