package content

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/swarm/piece"
)

const (
	crashBlobs  = 6
	crashRounds = 50
	crashTime   = 3 * time.Second // rounds end when it is over
)

// crashBlob returns the i-th blob that the child plays with.
func crashBlob(i int) (piece.ID, []byte) {
	data := make([]byte, 250_000+i*70_000)
	rand.NewChaCha8([32]byte{byte(i), 77}).Read(data)
	id, err := idOf(piece.SHA256, data)
	if err != nil {
		panic(err)
	}
	return id, data
}

// crashChild uses a store in every way until it is killed. It writes a line
// after each step: "published N", "deleting N", or something else.
func crashChild() {
	root := os.Getenv("CAPELIN_CRASH_CHILD")
	seed, _ := strconv.ParseUint(os.Getenv("CAPELIN_CRASH_SEED"), 10, 64)
	ctx := context.Background()
	fail := func(err error) {
		if err != nil && !errors.Is(err, ErrDropped) {
			fmt.Println("FAILED", strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
	s, err := Open(ctx, Config{Root: root, CacheBytes: 700_000, Report: fail})
	if err != nil {
		fail(err)
		return
	}
	go s.Run(ctx)
	fmt.Println("open")
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			for {
				// Each worker has its own blobs, so that what it says is true.
				i := w + 3*rnd.IntN(crashBlobs/3)
				id, data := crashBlob(i)
				d := digest.Digest(id.Digest())
				switch rnd.IntN(8) {
				case 0, 1:
					fmt.Println("deleting", i)
					fail(s.Delete(ctx, d))
				case 2:
					if _, err := s.Info(ctx, d); err == nil {
						fmt.Println("published", i)
					}
				case 3:
					fail(ctrdcontent.WriteBlob(ctx, s, fmt.Sprint("ref-", i), bytes.NewReader(data), ocispec.Descriptor{Size: id.Size}))
					fmt.Println("published", i)
				default:
					b, err := s.Blob(ctx, id, true)
					if err != nil {
						fail(err)
						continue
					}
					sums := piece.NewSums(id)
					piece.NewHasher(sums).Write(sums, data)
					for n, p := range rnd.Perm(id.Pieces()) {
						if n == id.Pieces()/2 && rnd.IntN(2) == 0 {
							break
						}
						fail(b.WritePiece(piece.NewClaim(sums, p, pieceOf(id, data, p))))
						if rnd.IntN(4) == 0 {
							fail(b.st.checkpoint())
						}
						fmt.Println("piece", i, p)
					}
					a, err := b.Append(ctx, b.Prefix())
					fail(err)
					for a.Offset() < id.Size && err == nil {
						_, err = a.Write(data[a.Offset():][:min(id.Size-a.Offset(), 40_000)])
						fmt.Println("append", i, a.Offset())
					}
					if rnd.IntN(8) == 0 {
						fail(b.Drop())
					} else if err = a.Finish(ctx); err == nil {
						fmt.Println("complete", i)
						if rnd.IntN(2) == 0 {
							fail(b.Publish(ctx))
							fmt.Println("published", i)
						}
					}
					fail(err)
					a.Close()
					b.Close()
				}
			}
		})
	}
	wg.Wait()
}

// A process that uses the store is killed again and again, anywhere. Each blob is
// then in exactly one place or in none, whole in blobs/ and cache/, and true
// where pieces count; what was published stays.
func TestKill9(t *testing.T) {
	root := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	published := make(map[int]bool)
	began := time.Now()
	rounds := 0
	for ; rounds < crashRounds && time.Since(began) < crashTime; rounds++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CAPELIN_CRASH_CHILD="+root, fmt.Sprintf("CAPELIN_CRASH_SEED=%d", rounds))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 1 + rnd.IntN(120)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			f := strings.Fields(sc.Text())
			i := 0
			if len(f) > 1 {
				i, _ = strconv.Atoi(f[1])
			}
			switch f[0] {
			case "published":
				published[i] = true
			case "deleting":
				published[i] = false
			case "FAILED":
				t.Errorf("round %d: %s", rounds, sc.Text())
			}
			if lines--; lines == 0 {
				cmd.Process.Kill()
				// Lines that were written before it died are read, too.
			}
		}
		cmd.Wait()
		checkCrashed(t, root, published, rounds)
		if t.Failed() {
			return
		}
	}
	t.Logf("killed %d times in %v", rounds, time.Since(began).Round(time.Millisecond))
}

func checkCrashed(t *testing.T, root string, published map[int]bool, round int) {
	for _, dir := range []string{"blobs", "cache"} {
		names, err := os.ReadDir(filepath.Join(root, dir, "sha256"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			b, err := os.ReadFile(filepath.Join(root, dir, "sha256", n.Name()))
			if err != nil || digest.FromBytes(b).Encoded() != n.Name() {
				t.Errorf("round %d: %s/%s is not whole: %v", round, dir, n.Name(), err)
			}
		}
	}
	s, err := Open(context.Background(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range crashBlobs {
		id, data := crashBlob(i)
		in, p := strings.Join(places(t, root, id), " "), s.Presence(id)
		want := map[Presence]string{Absent: "", Partial: "data map", Cached: "cache", Committed: "blobs"}[p]
		if in != want {
			t.Errorf("round %d: blob %d is %v, in %q", round, i, p, in)
		}
		if published[i] && p != Committed {
			t.Errorf("round %d: blob %d was published, and is %v", round, i, p)
		}
		if p != Absent {
			b := mustBlob(t, s, id, false)
			checkTrue(t, b, data)
			if _, proven := b.Sums(); p == Cached && !proven {
				// It came from blobs/, where the stock writer put it without sums.
				if err := b.ComputeSums(t.Context()); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			b.Close()
		}
	}
}
