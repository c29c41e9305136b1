package storages

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/s3"
	"github.com/capelin-io/capelin/fetcher/walk"
)

// TestMoveBackend: two servers' blobs go from a directory to a bucket while blobs are pushed, deleted and read, and whoever moves them is
// killed twice in the middle. What was acknowledged is in the bucket, what was deleted is not, and nothing failed.
func TestMoveBackend(t *testing.T) {
	ctx := t.Context()
	v := StartVersitygw(t, t.TempDir())
	v.Setenv(t)
	dir := t.TempDir()
	old, target := filepath.Join(dir, "old"), v.storage(v.URL())
	to := strings.ReplaceAll(target, "[storage", "[next")
	if err := os.WriteFile(dir+"/new.toml", []byte(target), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := []string{address(), address()}
	ring := fmt.Sprintf("[origin.ring]\nmembers = [\"a=%s:7480\", \"b=%s:7480\"]\n", hosts[0], hosts[1])
	var origins []string
	for i, host := range hosts {
		startRingServer(t, string(rune('a'+i)), host, fmt.Sprintf("[storage]\nkind = \"file\"\nfile.path = %q\n%s\n%s", old, to, ring))
		origins = append(origins, host+":7480")
	}
	c, err := origin.New(origin.Config{Origins: origins})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := &movingBlobs{t: t, o: &Origin{Client: c}, live: map[digest.Digest][]byte{}, gone: map[digest.Digest]bool{}}
	poll(t, "the first push", func() error { return m.push(ctx) }) // the ring is whole
	for range 20 {
		if err := m.push(ctx); err != nil {
			t.Fatal(err)
		}
	}
	bucket, err := s3.Open(v.Config(v.URL(), ""))
	if err != nil {
		t.Fatal(err)
	}
	defer bucket.Close()
	working, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { m.work(working) })
	defer func() { stop(); wg.Wait() }()

	args := []string{"origin", "move-backend", old, dir + "/new.toml", "--json"}
	for i := range 2 {
		// Slowly, so that it is in the middle.
		cmd := exec.Command(capelin(t), append(args, "--rate", "200KB/s")...)
		var said bytes.Buffer
		cmd.Stderr, cmd.SysProcAttr = &said, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		poll(t, "blobs in the bucket", func() error {
			select {
			case <-ended:
				return nil // which is found below
			default:
			}
			if n := len(m.keys(bucket)); n < 5*(i+1) {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		_ = cmd.Process.Kill()
		<-ended
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
			t.Fatalf("it has ended before it was killed: %v\n%s", cmd.ProcessState, said.String())
		}
	}
	var said bytes.Buffer
	cmd := exec.Command(capelin(t), args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	var done struct {
		Phase            string
		Copied, Verified int
	}
	if err := json.Unmarshal(out, &done); err != nil || done.Phase != "moved" || done.Verified == 0 {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%s", out)
	n := m.pushed()
	poll(t, "pushes to where all is now", func() error {
		if m.pushed() < n+5 {
			return fmt.Errorf("%d pushes", m.pushed()-n)
		}
		return nil
	})
	stop()
	wg.Wait()
	if err := os.RemoveAll(filepath.Join(old, "blobs")); err != nil { // nobody reads it
		t.Fatal(err)
	}
	m.compare(bucket)
	t.Logf("%d blobs are there, %d were deleted", len(m.live), len(m.gone))
}

// movingBlobs are blobs that were pushed and deleted, as far as that was acknowledged.
type movingBlobs struct {
	t *testing.T
	o *Origin

	mu   sync.Mutex
	n    int
	live map[digest.Digest][]byte
	gone map[digest.Digest]bool
}

func (m *movingBlobs) pushed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.n
}

func (m *movingBlobs) push(ctx context.Context) error {
	data := make([]byte, 40_000+rand.IntN(40_000))
	_, _ = rand.NewChaCha8([32]byte{byte(m.n), byte(m.n >> 8), byte(rand.IntN(256))}).Read(data)
	if err := m.o.Push(ctx, data); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n++
	m.live[digest.FromBytes(data)] = data
	return nil
}

// work pushes, reads and deletes until ctx ends.
func (m *movingBlobs) work(ctx context.Context) {
	for i := 0; ; i++ {
		err := m.push(ctx)
		if err == nil {
			m.mu.Lock()
			var any digest.Digest
			for any = range m.live {
				break
			}
			want := m.live[any]
			m.mu.Unlock()
			var got []byte
			if got, err = m.o.Pull(ctx, any); err == nil && !bytes.Equal(got, want) {
				m.t.Errorf("%s has other bytes", any)
			}
			if err == nil && i%2 == 0 {
				if err = m.o.Delete(ctx, origin.Ref{Digest: any, Namespace: namespace}); err == nil {
					m.mu.Lock()
					delete(m.live, any)
					m.gone[any] = true
					m.mu.Unlock()
				}
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.t.Errorf("while it moves: %v", err)
			return
		}
	}
}

// keys returns what a storage has of blobs and records.
func (m *movingBlobs) keys(b fetcher.Backend) (all []string) {
	for _, prefix := range []string{"blobs/", "records/"} {
		for info, err := range walk.All(m.t.Context(), b, prefix, "") {
			if err != nil {
				m.t.Fatal(err)
			}
			all = append(all, info.Key)
		}
	}
	return all
}

// compare fails the test if a storage has not all that is to be there, or, when origins have erased what was deleted, something else.
func (m *movingBlobs) compare(b fetcher.Backend) {
	m.t.Helper()
	for d, want := range m.live {
		key, err := fetcher.BlobKey(d)
		if err != nil {
			m.t.Fatal(err)
		}
		got, _, err := walk.Read(m.t.Context(), b, key, 1<<20)
		if err != nil || !bytes.Equal(got, want) {
			m.t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	poll(m.t, "what was deleted is erased", func() error {
		for d := range m.gone {
			key, err := fetcher.BlobKey(d)
			if err != nil {
				return err
			}
			if _, err := b.Stat(m.t.Context(), key); err == nil {
				return fmt.Errorf("%s is there", key)
			}
		}
		return nil
	})
	for d := range m.gone {
		if _, err := m.o.Pull(m.t.Context(), d); err == nil {
			m.t.Errorf("%s is served, and was deleted", d)
		}
	}
}

// address is one of this machine that nobody else has, so that ports are free there.
func address() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
}

// startRingServer starts a member of a ring.
func startRingServer(t *testing.T, name, host, more string) *Process {
	t.Helper()
	bin, dir := capelin(t), t.TempDir()
	return Start(t, Command{Name: name, Dir: dir, Host: host, Args: func(port int) []string {
		config := filepath.Join(dir, "server.toml")
		toml := fmt.Sprintf("data = %q\naddress = %q\nmetrics = \"\"\norigin.durability = \"backend\"\n", dir+"/data", host) +
			fmt.Sprintf("insecure = true\ngateway.listen = \"%s:%d\"\norigin.cache.free_floor = -1.0\n", host, port) + more
		if err := os.WriteFile(config, []byte(toml), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{bin, "server", "--config", config}
	}})
}
