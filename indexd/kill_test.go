package indexd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher/file"
)

// victimEnv makes the test's binary an index over the directory that it names;
// killsEnv is how often it is killed.
const (
	victimEnv = "CAPELIN_INDEX_VICTIM"
	killsEnv  = "CAPELIN_INDEX_KILLS"
)

const (
	killRepo    = "team/kill"
	killWriters = 4
	killImages  = 6
)

// killOrigins has the same images in every process: an index of an image each.
func killOrigins() (*origins, [][]ocispec.Descriptor) {
	o := newOrigins()
	add := func(mediaType string, b []byte) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: o.add(b), Size: int64(len(b))}
	}
	var images [][]ocispec.Descriptor // each: blobs, and then manifests, children first
	for i := range killImages {
		config := add(ocispec.MediaTypeImageConfig, fmt.Append(nil, "config ", i))
		layer := add(ocispec.MediaTypeImageLayer, fmt.Append(nil, "layer ", i))
		var m ocispec.Manifest
		m.SchemaVersion, m.MediaType, m.Config, m.Layers = 2, ocispec.MediaTypeImageManifest, config, []ocispec.Descriptor{layer}
		m.Subject = &ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromString("subject"), Size: 7}
		raw, _ := json.Marshal(m)
		image := add(m.MediaType, raw)
		var x ocispec.Index
		x.SchemaVersion, x.MediaType, x.Manifests = 2, ocispec.MediaTypeImageIndex, []ocispec.Descriptor{image}
		raw, _ = json.Marshal(x)
		images = append(images, []ocispec.Descriptor{config, layer, image, add(x.MediaType, raw)})
	}
	return o, images
}

// victim is the process that is killed: it writes its address, and serves.
func victim(dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = log.SetLevel("error")
	b, err := file.Open(file.Config{Path: dir})
	if err != nil {
		fail(err)
	}
	cfg := DefaultConfig()
	cfg.Listen, cfg.Metrics, cfg.Backend = "127.0.0.1:0", "", b
	cfg.Origin, _ = killOrigins()
	cfg.OnListen = func(a, _ net.Addr) { fmt.Println(a) }
	fail(Run(context.Background(), cfg))
}

// An index that is killed at any moment has, when it is up again, every tag that it
// acknowledged, in that revision or a later one that was under way, and nothing that
// is half there.
func TestKill(t *testing.T) {
	kills, err := strconv.Atoi(os.Getenv(killsEnv))
	if err != nil {
		kills = 12
	}
	dir := t.TempDir()
	_, images := killOrigins()
	type acked struct {
		tag     index.Tag // the last that was acknowledged
		deleted bool      // a deletion of it was, later
		pending int       // writes that were not acknowledged since
	}
	state := make([]map[string]*acked, killWriters) // by tag; each writer has tags of its own
	for i := range state {
		state[i] = map[string]*acked{}
	}
	var writes atomic.Int64
	for kill := range kills {
		v := startVictim(t, dir)
		c := client(t, v.addr)
		// What was acknowledged is there.
		listed := map[string]bool{}
		if kill > 0 {
			for _, name := range pages(t, 7, func(after string, limit int) ([]string, bool, error) {
				names, more, err := c.Tags(t.Context(), killRepo, after, limit)
				if errdefs.IsNotFound(err) {
					err = nil // killed before the first manifest
				}
				return names, more, err
			}) {
				listed[name] = true
			}
		}
		for _, tags := range state {
			for name, a := range tags {
				got, err := c.Tag(t.Context(), killRepo, name)
				switch {
				case err != nil && !errdefs.IsNotFound(err):
					t.Fatalf("kill %d: %v", kill, err)
				case (err == nil) != listed[name]:
					t.Fatalf("kill %d: tag %s: %v, listed: %v", kill, name, err, listed[name])
				case a.pending == 0 && (err == nil) == a.deleted, a.pending == 0 && !a.deleted && fmt.Sprint(got) != fmt.Sprint(a.tag):
					t.Fatalf("kill %d: tag is %+v, %v; acknowledged was %+v, deleted: %v", kill, got, err, a.tag, a.deleted)
				case err == nil && (got.Revision < a.tag.Revision || got.Revision > a.tag.Revision+2):
					t.Fatalf("kill %d: tag is %+v; acknowledged was %+v", kill, got, a.tag)
				}
				if err == nil {
					a.tag, a.deleted, a.pending = got, false, 0
				} else {
					a.deleted, a.pending = true, 0
				}
			}
		}
		// Whatever is visible is whole.
		for name := range listed {
			tag, err := c.Tag(t.Context(), killRepo, name)
			if err != nil {
				t.Fatal(err)
			}
			if err := whole(t.Context(), c, tag.Descriptor.Digest); err != nil {
				t.Fatalf("kill %d: tag %s: %v", kill, name, err)
			}
		}
		digests, _, err := c.Manifests(t.Context(), killRepo, "", 0)
		if err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		for _, d := range digests {
			if err := whole(t.Context(), c, d); err != nil {
				t.Fatalf("kill %d: %v", kill, err)
			}
		}
		// Push until it dies.
		var wg sync.WaitGroup
		var pushed atomic.Int64
		enough := make(chan struct{})
		target := int64(rand.N(40))
		for i := range killWriters {
			tags := state[i]
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(kill), uint64(i)))
				for {
					image := images[rnd.IntN(len(images))]
					name := fmt.Sprintf("w%d-%d", i, rnd.IntN(3))
					a := tags[name]
					if a == nil {
						a = &acked{deleted: true}
						tags[name] = a
					}
					if rnd.IntN(4) == 0 || kill == 0 || len(digests) < 2*killImages {
						if err := pushImage(t.Context(), c, image); err != nil {
							return
						}
					}
					a.pending++
					if rnd.IntN(4) == 0 && !a.deleted {
						if err := c.DeleteTag(t.Context(), killRepo, name); err != nil {
							return
						}
						a.tag.Revision++
						a.deleted, a.pending = true, 0
					} else {
						tag, err := c.PutTag(t.Context(), killRepo, name, image[len(image)-1])
						if err != nil {
							return
						}
						if tag.Revision <= a.tag.Revision {
							t.Errorf("revision %d after %d", tag.Revision, a.tag.Revision)
						}
						a.tag, a.deleted, a.pending = tag, false, 0
					}
					writes.Add(1)
					if pushed.Add(1) == target {
						close(enough)
					}
				}
			})
		}
		select {
		case <-enough:
		case <-time.After(time.Duration(rand.N(120)) * time.Millisecond): // or in the middle of the first ones
		}
		v.kill()
		wg.Wait()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d writes acknowledged, %d kills", writes.Load(), kills)
}

func pushImage(ctx context.Context, c *index.Client, image []ocispec.Descriptor) error {
	for i, d := range image {
		var err error
		if i < 2 {
			err = c.LinkBlob(ctx, killRepo, d)
		} else {
			err = c.PutManifest(ctx, killRepo, index.Manifest{Descriptor: d})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// whole verifies that a manifest, all below it and its entry at its subject are there.
func whole(ctx context.Context, c *index.Client, d digest.Digest) error {
	m, err := c.Manifest(ctx, killRepo, d)
	if err != nil {
		return err
	}
	for _, b := range m.Blobs {
		if _, err := c.Blob(ctx, killRepo, b.Digest); err != nil {
			return err
		}
	}
	for _, child := range m.Manifests {
		if err := whole(ctx, c, child.Digest); err != nil {
			return err
		}
	}
	if m.Subject == nil {
		return nil
	}
	refs, err := c.Referrers(ctx, killRepo, m.Subject.Digest, "")
	for _, r := range refs {
		if r.Digest == d {
			return nil
		}
	}
	return fmt.Errorf("%s is no referrer of its subject: %w", d, err)
}

type victimProcess struct {
	addr string
	cmd  *exec.Cmd
	out  io.ReadCloser
}

func startVictim(t *testing.T, dir string) *victimProcess {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victimProcess{cmd: cmd, out: out}
	t.Cleanup(v.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal("the index did not come up: ", err)
	}
	v.addr = strings.TrimSpace(line)
	return v
}

func (v *victimProcess) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}
