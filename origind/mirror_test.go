package origind

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/origind/ringstate/mirror"
	"github.com/capelin-io/capelin/swarm/piece"
)

// ringOf is a ring of a test, with a client of all its members.
type ringOf struct {
	t      *testing.T
	names  []string // a, b, …
	addrs  []string // of their APIs
	stop   []func()
	client *origin.Client
}

// startRing starts n members, of which min keep a blob: in processes of their own, which stop
// then kills, or in this one.
func startRing(t *testing.T, n, min int, processes bool) *ringOf {
	t.Helper()
	return startRingWith(t, n, processes, func(_ int, cfg *Config) { cfg.Ring.Replicas, cfg.Ring.MinReplicas = min, min })
}

// startRingWith is startRing with members that are configured by change, if they are in this process.
func startRingWith(t *testing.T, n int, processes bool, change func(i int, cfg *Config)) *ringOf {
	t.Helper()
	r := &ringOf{t: t}
	var all []string
	var at []net.Listener
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, l)
		r.names = append(r.names, string(rune('a'+i)))
		r.addrs = append(r.addrs, l.Addr().String())
		all = append(all, r.names[i]+"="+r.addrs[i])
	}
	for i, name := range r.names {
		if processes {
			r.stop = append(r.stop, startMember(t, name, all, at[i].(*net.TCPListener)))
			continue
		}
		cfg := testConfig(t, t.TempDir(), nil)
		cfg.Node, cfg.Listener, cfg.Ring.Members = name, at[i], all
		change(i, &cfg)
		r.stop = append(r.stop, start(t, cfg).stop)
	}
	c, err := origin.New(origin.Config{Origins: r.addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r.client = c
	eventually(t, "all are up", func() bool { return r.up() == n })
	return r
}

// up counts the members that serve.
func (r *ringOf) up() (n int) {
	_, d := testBlob(1, 999)
	for i := range r.addrs {
		err := r.at(i, func(m *origin.Member) error {
			_, err := m.Stat(r.t.Context(), origin.Ref{Digest: d})
			return err
		})
		if errdefs.IsNotFound(err) {
			n++
		}
	}
	return n
}

// at asks a member something.
func (r *ringOf) at(i int, ask func(m *origin.Member) error) error {
	m, err := origin.NewMember(origin.Config{Origins: []string{r.addrs[i]}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	return ask(m)
}

// startMember starts a member in a process of its own.
func startMember(t *testing.T, name string, all []string, l *net.TCPListener) (kill func()) {
	t.Helper()
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	v := startVictimWith(t, t.TempDir(), f, "CAPELIN_ORIGIN_RING="+string(text), "CAPELIN_ORIGIN_NODE="+name)
	if err := errors.Join(f.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(v.kill)
	t.Cleanup(kill)
	return kill
}

// copies counts the members that have a blob themselves.
func (r *ringOf) copies(data []byte) (n int) {
	for i := range r.addrs {
		err := r.at(i, func(m *origin.Member) error {
			_, err := m.Stat(r.t.Context(), origin.Ref{Digest: digest.FromBytes(data)})
			return err
		})
		if err == nil {
			n++
		}
	}
	return n
}

// goesOn ends an upload of which so much is there.
func (r *ringOf) goesOn(t *testing.T, id string, d digest.Digest, data []byte, there int64) {
	t.Helper()
	off, err := r.client.UploadOffset(t.Context(), id)
	if err != nil || off != there {
		t.Fatalf("it goes on at %d, %v", off, err)
	}
	if _, err := r.client.Append(t.Context(), id, off, bytes.NewReader(data[off:])); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Commit(t.Context(), id, d); err != nil {
		t.Fatal(err)
	}
}

// stands returns how an upload stands at each member that has it, and the one that leads it.
func (r *ringOf) stands(id string) (at map[int]origin.Stand, leader int) {
	_, id, _ = strings.Cut(id, "-")
	at, leader = map[int]origin.Stand{}, -1
	for i, addr := range r.addrs {
		m, err := origin.NewMember(origin.Config{Origins: []string{addr}})
		if err != nil {
			r.t.Fatal(err)
		}
		st, err := m.Stands(context.Background(), origin.Copy{ID: id, From: r.names[(i+1)%len(r.names)]})
		if m.Close(); err == nil {
			at[i] = st
			if st.Leads {
				leader = i
			}
		}
	}
	return at, leader
}

// An acknowledged push is at as many members as are wanted, and not at others.
func TestMirrored(t *testing.T) {
	for min := 1; min <= 3; min++ {
		r := startRing(t, 3, min, false)
		data, d := testBlob(3<<20, uint64(min))
		id, err := r.client.StartUpload(t.Context(), "any/app", d)
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(data); off += 1 << 20 {
			if _, err := r.client.Append(t.Context(), id, int64(off), bytes.NewReader(data[off:off+1<<20])); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if info, err := r.client.Commit(t.Context(), id, d); err != nil || info.Size != int64(len(data)) {
				t.Fatalf("%+v, %v", info, err)
			}
		}
		if n := r.copies(data); n != min {
			t.Errorf("%d copies, not %d", n, min)
		}
	}
}

// The member that takes an upload is killed in the middle of an append. The client goes on at the
// mirror, from where that is.
func TestPrimaryKilled(t *testing.T) {
	r := startRing(t, 3, 2, true)
	data, d := testBlob(5<<20, 7)
	id, err := r.client.StartUpload(t.Context(), "kept/app", "")
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		_, err := r.client.Append(context.Background(), id, 0, pr)
		pr.CloseWithError(io.ErrClosedPipe)
		failed <- err
	}()
	if _, err := pw.Write(data[:3<<20]); err != nil {
		t.Fatal(err)
	}
	leader := -1
	eventually(t, "two members have 3 MiB", func() bool {
		var at map[int]origin.Stand
		at, leader = r.stands(id)
		n := 0
		for _, st := range at {
			if st.Offset == 3<<20 {
				n++
			}
		}
		return n == 2
	})
	select {
	case err := <-failed:
		t.Fatalf("mirrored when the append had ended: %v", err)
	default:
	}
	r.stop[leader]()
	_, _ = pw.Write(data[3<<20 : 4<<20])
	pw.Close()
	if err := <-failed; !errdefs.IsUnavailable(err) {
		t.Fatalf("the append: %v", err)
	}
	r.goesOn(t, id, d, data, 3<<20)
	if n := r.copies(data); n != 2 {
		t.Errorf("%d copies", n)
	}
	if at, next := r.stands(id); next == leader || at[next].Term != 2 {
		t.Errorf("it is led by %d: %+v", next, at)
	}
}

// The member dies between the last append and the commit, which goes on at the mirror by itself.
func TestPrimaryKilledBeforeCommit(t *testing.T) {
	r := startRing(t, 3, 2, true)
	data, d := testBlob(2<<20, 8)
	id, err := r.client.StartUpload(t.Context(), "kept/app", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Append(t.Context(), id, 0, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	leader := -1
	eventually(t, "two members have all", func() bool {
		var at map[int]origin.Stand
		at, leader = r.stands(id)
		n := 0
		for _, st := range at {
			if st.Offset == int64(len(data)) {
				n++
			}
		}
		return n == 2
	})
	r.stop[leader]()
	if info, err := r.client.Commit(t.Context(), id, d); err != nil || info.Size != int64(len(data)) {
		t.Fatalf("%+v, %v", info, err)
	}
	if n := r.copies(data); n != 2 {
		t.Errorf("%d copies", n)
	}
}

// Another member that is asked for an upload sends the client to the one that has it.
func TestAskedElsewhere(t *testing.T) {
	r := startRing(t, 3, 1, false)
	data, d := testBlob(1000, 3)
	id, err := r.client.StartUpload(t.Context(), "any/app", "")
	if err != nil {
		t.Fatal(err)
	}
	_, leader := r.stands(id)
	primary := r.addrs[leader]
	_, at, _ := strings.Cut(id, "-")
	for _, addr := range r.addrs {
		if addr == primary {
			continue
		}
		req, err := http.NewRequestWithContext(t.Context(), "PATCH", "http://"+addr+"/v1/uploads/"+at+"?offset=0", bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.GetBody = nil
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if to := resp.Header.Get("Location"); resp.StatusCode != 307 || to != "http://"+primary+"/v1/uploads/"+at+"?offset=0" {
			t.Errorf("status %d to %q", resp.StatusCode, to)
		}
		if resp, err = http.Head("http://" + addr + "/v1/uploads/" + at); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 204 || resp.Request.URL.Host != primary {
			t.Errorf("HEAD: status %d from %s", resp.StatusCode, resp.Request.URL.Host)
		}
	}
	if _, err := r.client.Append(t.Context(), id, 0, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Commit(t.Context(), id, d); err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A client's append ends the one by which the mirror is fed, however long that would have taken, and from
// then on the mirror leads.
func TestClientEndsFeeding(t *testing.T) {
	r := startRing(t, 2, 1, false)
	data, d := testBlob(2<<20, 5)
	id := strings.Repeat("ab", 16)
	at, err := origin.NewMember(origin.Config{Origins: r.addrs[:1]})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	b := origin.Copy{ID: id, From: "b", Term: 4}
	if st, err := at.Start(t.Context(), b, origin.NewUpload{Namespace: "any/app", Digest: d}); err != nil || st.Offset != 0 || st.Term != 4 {
		t.Fatalf("%+v, %v", st, err)
	}
	pr, pw := io.Pipe()
	fed := make(chan error, 1)
	go func() {
		_, err := at.Append(context.Background(), b, 0, pr)
		pr.CloseWithError(io.ErrClosedPipe)
		fed <- err
	}()
	if _, err := pw.Write(data[:1<<20]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mirror has 1 MiB", func() bool {
		st, err := at.Stands(t.Context(), b)
		return err == nil && st.Offset == 1<<20 && !st.Leads
	})
	url := "http://" + r.addrs[0] + "/v1/uploads/" + id + "?offset=1048576"
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", url, bytes.NewReader(data[1<<20:]))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get(origin.HeaderOffset) != "2097152" || resp.Header.Get(origin.HeaderTerm) != "5" {
		t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
	}
	if err := <-fed; err == nil {
		t.Error("the leader was not told")
	}
	if st, err := at.Append(t.Context(), b, 2<<20, strings.NewReader("x")); !errdefs.IsConflict(err) || st.Term != 5 {
		t.Errorf("it goes on: %+v, %v", st, err)
	}
	if _, _, err := at.Commit(t.Context(), b, 2<<20, d); !errdefs.IsConflict(err) {
		t.Errorf("it commits: %v", err)
	}
	b.Term = 6
	if _, done, err := at.Commit(t.Context(), b, 2<<20, d); err != nil || !done {
		t.Errorf("by a higher term: %v", err)
	}
	if st, err := at.Stands(t.Context(), b); err != nil || st.Committed != d || st.Offset != 2<<20 {
		t.Errorf("%+v, %v", st, err)
	}
	if n := r.copies(data); n != 1 {
		t.Errorf("%d copies", n)
	}
	if err := r.client.Delete(t.Context(), origin.Ref{Digest: d}); err != nil {
		t.Error(err)
	}
	if _, _, err := at.Commit(t.Context(), b, 2<<20, d); !errdefs.IsNotFound(err) {
		t.Errorf("a blob that was deleted since: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// deadlines is a response whose deadlines somebody looks at.
type deadlines struct {
	http.ResponseWriter
	read time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.read = t; return nil }

// A body that is to stop is interrupted, and no later Read gives it more time.
func TestBodyStops(t *testing.T) {
	d := &deadlines{}
	m := &moving{r: strings.NewReader("content"), rc: http.NewResponseController(d)}
	now := time.Now()
	if n, err := m.Read(make([]byte, 3)); n != 3 || err != nil || !d.read.After(now.Add(moveTimeout/2)) {
		t.Fatalf("%d, %v, until %v", n, err, d.read)
	}
	m.stop()
	if d.read.After(time.Now()) {
		t.Errorf("a Read under way goes on until %v", d.read)
	}
	until := d.read
	if n, err := m.Read(make([]byte, 3)); n != 0 || !errdefs.IsConflict(err) || d.read != until {
		t.Errorf("%d, %v, until %v", n, err, d.read)
	}
}

// What could not be synced is lost, and so is its upload: it must not be committed by what the page
// cache shows.
func TestUploadLostBySync(t *testing.T) {
	s, ctx := newServer(t, testConfig(t, t.TempDir(), nil))
	s.uploads.keep = func(_ context.Context, u *upload, _ digest.Digest, _ *piece.Sums) error {
		return errors.Join(errors.New("fsync: input/output error"), os.Remove(u.path()))
	}
	data, d := testBlob(1000, 1)
	u, err := s.startUpload("", uploadMeta{Namespace: "any/app"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.append(ctx, mirror.Request{}, bytes.NewReader(data), func() {}); err != nil {
		t.Fatal(err)
	}
	if _, err := u.await(ctx, u.ask(mirror.Request{Kind: mirror.Put, Off: -1, Digest: d}, nil)); class(err) != "internal" {
		t.Errorf("committing: %v", err)
	}
	eventually(t, "the upload is gone", func() bool {
		_, err := s.uploads.get(u.id)
		return errdefs.IsNotFound(err)
	})
}

// Only members speak as such.
func TestNotAMember(t *testing.T) {
	r := startRing(t, 2, 1, false)
	id := strings.Repeat("0", 32)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"POST", "/v1/uploads?namespace=any/app&id=" + id, 400},
		{"POST", "/v1/uploads?namespace=any/app&replica=1", 400},
		{"POST", "/v1/uploads?namespace=any/app&from=b&replica=1", 400},
		{"POST", "/v1/uploads?namespace=any/app&from=b&id=" + id, 400},
		{"POST", "/v1/uploads?namespace=any/app&from=b&replica=0&id=" + id, 400},
		{"POST", "/v1/uploads?namespace=any/app&from=a&replica=1&id=" + id, 403},
		{"POST", "/v1/uploads?namespace=any/app&from=x&replica=1&id=" + id, 403},
		{"POST", "/v1/uploads?namespace=any/app&digest=x", 400},
		{"POST", "/v1/uploads?namespace=any/app&digest=sha256:" + id + id, 201},
		{"POST", "/v1/uploads?namespace=any/app&from=b&replica=1&id=" + id, 201},
		{"PATCH", "/v1/uploads/" + id + "?from=b&replica=1&offset=0", 200},
		{"PATCH", "/v1/uploads/" + id + "?from=b&replica=1&offset=7", 416},
		{"PUT", "/v1/uploads/" + id + "?from=b&replica=1&offset=7&digest=sha256:" + id + id, 416},
		{"PUT", "/v1/uploads/" + id + "?from=b&replica=1&offset=x&digest=sha256:" + id + id, 400},
		{"DELETE", "/v1/uploads/" + id + "?from=b&replica=1", 204},
		{"DELETE", "/v1/uploads/" + id + "?from=b&replica=1", 404},
		{"HEAD", "/v1/uploads/" + id + "?from=b", 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+r.addrs[0]+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("%s %s: %d, %s", tt.method, tt.path, resp.StatusCode, resp.Header.Get(origin.HeaderReason))
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A member that knows the others is one of them, although their lists do not have it: they learn where it is when it asks.
func TestNewMember(t *testing.T) {
	r := startRing(t, 2, 2, false)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, t.TempDir(), nil)
	cfg.Node, cfg.Listener = "c", l
	cfg.Ring.Members, cfg.Ring.Replicas, cfg.Ring.MinReplicas = []string{"a=" + r.addrs[0], "b=" + r.addrs[1]}, 2, 2
	start(t, cfg)
	for i, name := range r.names {
		eventually(t, "c is up at "+name, func() (is bool) {
			_ = r.at(i, func(m *origin.Member) error {
				st, err := m.RingStatus(t.Context())
				if err == nil && st.Member("c") != nil {
					c := st.Member("c")
					is = c.State == origin.RingUp && c.Address == l.Addr().String()
				}
				return err
			})
			return is
		})
	}
}

// What a client's bytes have instead of the digest is no mistake of the client's if it is another member that lacks some.
func TestFailureIsOneClass(t *testing.T) {
	u := &upload{id: "u"}
	for code, is := range map[mirror.Code]func(error) bool{
		mirror.WrongDigest: errdefs.IsInvalidArgument, mirror.OutOfRange: errdefs.IsOutOfRange, mirror.Unknown: errdefs.IsNotFound,
	} {
		err := u.failure(mirror.Answer{Code: code, Err: fmt.Errorf("another digest: %w", errdefs.ErrInvalidArgument)})
		class, _ := origin.Class(err)
		if !is(err) || code != mirror.WrongDigest && (errdefs.IsInvalidArgument(err) || class == "invalid_argument") {
			t.Errorf("%v: %v, class %s", code, err, class)
		}
	}
}

// What is given to a mirror in one request goes on with what has arrived meanwhile.
func TestSectionGrows(t *testing.T) {
	u := &upload{dir: t.TempDir(), m: mirror.New(mirror.Config{}, 0, time.Now())}
	grow := func(text string) {
		f, err := os.OpenFile(u.path(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			u.size.Add(int64(len(text)))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	grow("0123456789")
	r, err := u.section(t.Context(), 2, 6)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	one := make([]byte, 3)
	if _, err := io.ReadFull(r, one); err != nil {
		t.Fatal(err)
	}
	grow("abc")
	rest, err := io.ReadAll(r)
	if got := string(one) + string(rest); got != "23456789abc" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}
