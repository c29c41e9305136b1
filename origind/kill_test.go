package origind

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher/file"
)

// child is an origin in a process of its own, to be killed. Its directory is the
// environment's CAPELIN_ORIGIN_CHILD.
func child() {
	dir := os.Getenv("CAPELIN_ORIGIN_CHILD")
	b, err := file.Open(file.Config{Path: dir + "/backend"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cfg := DefaultConfig()
	cfg.Root, cfg.Stores = dir+"/origin", stores{"file": b}
	cfg.Listen, cfg.Swarm.Listen, cfg.Metrics = "127.0.0.1:0", "127.0.0.1:0", ""
	cfg.Cache.Size, cfg.Cache.FreeFloor = 1, -1
	cfg.OnListen = func(api, _, _ net.Addr) { fmt.Println(api) }
	if text := os.Getenv("CAPELIN_ORIGIN_RING"); text != "" {
		err := json.Unmarshal([]byte(text), &cfg.Ring.Members)
		cfg.Ring.Replicas, cfg.Ring.MinReplicas = 2, 2
		if err == nil {
			cfg.Listener, err = net.FileListener(os.NewFile(3, "listener"))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		cfg.Node = os.Getenv("CAPELIN_ORIGIN_NODE")
	}
	if err := Run(context.Background(), cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// victim is a running child.
type victim struct {
	cmd    *exec.Cmd
	client *origin.Client
}

func startVictim(t *testing.T, dir string) *victim {
	return startVictimWith(t, dir, nil)
}

// startVictimWith is startVictim as a member of a ring, which serves a listener of ours.
func startVictimWith(t *testing.T, dir string, l *os.File, env ...string) *victim {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(append(os.Environ(), "CAPELIN_ORIGIN_CHILD="+dir), env...)
	if l != nil {
		cmd.ExtraFiles = []*os.File{l}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the origin did not start: %v\n%s", err, stderr.String())
	}
	c, err := origin.New(origin.Config{Origins: []string{strings.TrimSpace(addr)}})
	if err != nil {
		t.Fatal(err)
	}
	return &victim{cmd, c}
}

func (v *victim) kill() {
	v.client.Close()
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// pushed is a blob that somebody pushed, and how far that got.
type pushed struct {
	data      []byte
	d         digest.Digest
	committed bool // a commit was sent
	acked     bool // and acknowledged
}

// check reports whether a blob is there as it must.
func (p *pushed) check(c *origin.Client) error {
	got, _, err := readFrom(c, origin.Ref{Digest: p.d}, 0, -1)
	switch {
	case err != nil && !errdefs.IsNotFound(err):
		return err
	case p.acked && err != nil:
		return fmt.Errorf("an acknowledged blob is gone: %w", err)
	case !p.committed && err == nil:
		return fmt.Errorf("a blob that nobody committed is visible")
	case err == nil && !bytes.Equal(got, p.data):
		return fmt.Errorf("a blob has %d of %d bytes, or others", len(got), len(p.data))
	}
	return nil
}

// An origin that is killed at any moment has, when it is up again, every blob that
// it acknowledged, whole, and shows no other than those whose commit it was at.
// CAPELIN_KILLS says how often.
func TestKill9(t *testing.T) {
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("CAPELIN_KILLS")); err == nil {
		rounds = n
	}
	dir := t.TempDir()
	var all, last []*pushed
	v := startVictim(t, dir)
	defer func() { v.kill() }()
	seed := uint64(0)
	acked := 0
	for round := range rounds {
		for _, p := range last {
			if err := p.check(v.client); err != nil {
				t.Fatalf("round %d: %s: %v", round, p.d, err)
			}
		}
		all = append(all, last...)
		last = nil
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					p := &pushed{}
					mu.Lock()
					seed++
					p.data, p.d = testBlob(1+rand.IntN(300_000), seed)
					last = append(last, p)
					mu.Unlock()
					if !p.push(ctx, v.client, []string{"file/app", "kept/app"}[(w+i)%2]) {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // the moment is what is random
		v.kill()
		cancel()
		wg.Wait()
		for _, p := range last {
			if p.acked {
				acked++
			}
		}
		v = startVictim(t, dir)
	}
	for _, p := range append(all, last...) {
		if err := p.check(v.client); err != nil {
			t.Fatalf("in the end: %s: %v", p.d, err)
		}
	}
	t.Logf("%d kills, %d blobs pushed, %d acknowledged", rounds, len(all)+len(last), acked)
}

func (p *pushed) push(ctx context.Context, c *origin.Client, ns string) bool {
	id, err := c.StartUpload(ctx, ns, "")
	if err != nil {
		return false
	}
	off := int64(0)
	for _, part := range [][]byte{p.data[:len(p.data)/2], p.data[len(p.data)/2:]} {
		if off, err = c.Append(ctx, id, off, bytes.NewReader(part)); err != nil {
			return false
		}
	}
	p.committed = true
	if _, err = c.Commit(ctx, id, p.d); err != nil {
		return false
	}
	p.acked = true
	return true
}
