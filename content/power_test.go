package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	ctrdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/internal/durable/disk"
	"github.com/capelin-io/capelin/internal/durable/disktest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// play is one story of a store on a disk whose power goes after any operation, or
// one of whose operations fails.
type play struct {
	t    testing.TB
	root string
	s    *Store
	disk *disktest.Disk // nil at the beginning, when nothing is recorded yet
	said map[string]string

	spoiled  bool
	reported []error
}

// What is promised of a blob, under its digest.
const (
	promisedPieces    = "pieces" // followed by their number
	promisedCached    = "cached"
	promisedCommitted = "committed"
	promisedRotten    = "rotten" // until it is found out it may be taken for whole
	promisedWrong     = "wrong"  // piece 0, and the others are right
)

func (p *play) promise(id piece.ID, what string) { p.say(id.Digest(), what) }

func (p *play) say(what, promise string) {
	p.said[what] = promise
	if p.disk != nil {
		p.disk.Say(what, promise)
	}
}

// powerBlobs are the blobs of all stories, by digest.
var powerBlobs = map[string][]byte{}

func powerBlob(alg piece.Algorithm, seed byte) (piece.ID, []byte) {
	data := bytes.Repeat([]byte{seed, 1, 2, 3, 4, 5, 6}, 20_000) // three pieces
	id, err := idOf(alg, data)
	if err != nil {
		panic(err)
	}
	powerBlobs[id.Digest()] = data
	return id, data
}

// pieces writes pieces of a blob, and their map.
func (p *play) pieces(id piece.ID, data []byte, which ...int) (*Blob, error) {
	b, err := p.s.Blob(p.t.Context(), id, true)
	if err != nil {
		return nil, err
	}
	sums := sumsOf(p.t, id, data)
	for _, i := range which {
		if err = b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i))); err != nil {
			break
		}
	}
	if err == nil {
		err = b.st.checkpoint()
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	p.promise(id, fmt.Sprintf("%s %d", promisedPieces, len(which)))
	return b, nil
}

// complete takes a blob in, into cache/.
func (p *play) complete(id piece.ID, data []byte) error {
	b, err := p.pieces(id, data, 2, 0, 1)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Complete(p.t.Context()); err != nil {
		return err
	}
	p.promise(id, promisedCached)
	return nil
}

// upload writes a file to be imported.
func (p *play) upload(data []byte) string {
	path := filepath.Join(p.root, "upload")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *play) importBlob(id piece.ID, data []byte) error {
	if err := p.s.Import(p.t.Context(), p.upload(data), sumsOf(p.t, id, data)); err != nil {
		return err
	}
	p.promise(id, promisedCommitted)
	return nil
}

// spoil makes the bytes of a blob in blobs/ wrong, and has that found out.
func (p *play) spoil(id piece.ID) error {
	if p.spoiled {
		return nil
	}
	p.spoiled = true
	p.promise(id, promisedRotten)
	path := p.s.blobPath(digest.Digest(id.Digest()), Committed)
	os.Chmod(path, 0o600)
	overwrite(p.t, path, []byte("rotten"), 0)
	b, err := p.s.Blob(p.t.Context(), id, false)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Recheck(0); !errors.Is(err, piece.ErrMismatch) {
		return fmt.Errorf("recheck: %w", err)
	} else if p.failedIn(err) {
		return err
	}
	p.promise(id, "")
	return nil
}

// failedIn reports whether the disk's failure is in err.
func (p *play) failedIn(err error) bool {
	failed, ok := p.disk.Failed()
	return ok && strings.Contains(err.Error(), failed.Path)
}

// stockWrite has containerd's own writer commit a blob, unless it has.
func (p *play) stockWrite(id piece.ID, data []byte) error {
	if p.s.Presence(id) == Committed {
		return nil
	}
	ctx, d := p.t.Context(), digest.Digest(id.Digest())
	w, err := p.s.Writer(ctx, ctrdcontent.WithRef("r"), ctrdcontent.WithDescriptor(ocispec.Descriptor{Size: id.Size, Digest: d}))
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit(ctx, id.Size, d)
}

type powerStory struct {
	name   string
	mends  bool          // Config.Wrong
	before func(p *play) // on a disk that works; nil: the directory is not even opened
	run    func(p *play) error
}

func nothing(*play) {}

func powerStories() []powerStory {
	x, xdata := powerBlob(piece.SHA256, 1)
	y, ydata := powerBlob(piece.SHA256, 2)
	z, zdata := powerBlob(piece.SHA512, 3)
	dgst := func(id piece.ID) digest.Digest { return digest.Digest(id.Digest()) }
	ctx := context.Background()
	return []powerStory{{
		name: "pieces, completion, publication",
		run: func(p *play) error {
			b, err := p.pieces(x, xdata, 2)
			if err != nil {
				return err
			}
			defer b.Close()
			b2, err := p.pieces(x, xdata, 0, 1)
			if err != nil {
				return err
			}
			b2.Close()
			p.promise(x, promisedPieces+" 3")
			if err := b.Complete(ctx); err != nil {
				return err
			}
			p.promise(x, promisedCached)
			if err := b.Publish(ctx); err != nil {
				return err
			}
			p.promise(x, promisedCommitted)
			return nil
		},
	}, {
		name:   "of another algorithm, without a map",
		before: nothing,
		run: func(p *play) error {
			b, err := p.s.Blob(ctx, z, true)
			if err != nil {
				return err
			}
			defer b.Close()
			a, err := b.Append(ctx, 0)
			if err != nil {
				return err
			}
			defer a.Close()
			for part := range slices.Chunk(zdata, 50_000) {
				if _, err := a.Write(part); err != nil {
					return err
				}
			}
			if err := a.Finish(ctx); err != nil {
				return err
			}
			p.promise(z, promisedCached)
			if _, err := p.s.Info(ctx, dgst(z)); err != nil { // containerd has it, with that
				return err
			}
			p.promise(z, promisedCommitted)
			return nil
		},
	}, {
		name:   "deletion, eviction",
		before: func(p *play) { must(p.t, p.complete(x, xdata)); must(p.t, p.importBlob(y, ydata)) },
		run: func(p *play) error {
			p.promise(x, "")
			if err := p.s.DropCached(x); err != nil {
				return err
			}
			p.promise(y, promisedCached) // deleted, or still there
			if err := p.s.Delete(ctx, dgst(y)); err != nil {
				return err
			}
			p.promise(y, "")
			p.s.makeRoom(ctx, 1<<20)
			return nil
		},
	}, {
		name:   "import of the first of its algorithm, and again",
		before: nothing,
		run: func(p *play) error {
			if err := p.importBlob(z, zdata); err != nil {
				return err
			}
			return p.importBlob(z, zdata)
		},
	}, {
		name:   "import of one that is cached",
		before: func(p *play) { must(p.t, p.complete(x, xdata)) },
		run:    func(p *play) error { return p.importBlob(x, xdata) },
	}, {
		name:   "rotten, and imported anew",
		before: func(p *play) { must(p.t, p.importBlob(x, xdata)) },
		run: func(p *play) error {
			if err := p.spoil(x); err != nil {
				return err
			}
			return p.importBlob(x, xdata)
		},
	}, {
		name:   "rotten, and healed by the swarm",
		before: func(p *play) { must(p.t, p.importBlob(x, xdata)) },
		run: func(p *play) error {
			if err := p.spoil(x); err != nil {
				return err
			}
			if err := p.complete(x, xdata); err != nil {
				return err
			}
			p.promise(x, promisedCommitted)
			return nil
		},
	}, {
		name:   "containerd's own writer, sums, labels",
		before: nothing,
		run: func(p *play) error {
			if err := p.stockWrite(z, zdata); err != nil {
				return err
			}
			// Whether it is synced is containerd's affair.
			d, err := os.Open(filepath.Join(p.root, "blobs/sha512"))
			must(p.t, err)
			defer d.Close()
			f, err := os.Open(p.s.blobPath(dgst(z), Committed))
			must(p.t, err)
			defer f.Close()
			p.disk.Synced(d, f)
			p.promise(z, promisedCommitted+" without sums")
			b, err := p.s.Blob(ctx, z, false)
			if err != nil {
				return err
			}
			defer b.Close()
			if err := b.ComputeSums(ctx); err != nil {
				return err
			}
			if sums, _ := p.s.StoredSums(z); sums != nil { // a sums file that cannot be written is reported only
				p.promise(z, promisedCommitted)
			}
			info := ctrdcontent.Info{Digest: dgst(z), Labels: map[string]string{"a": "b"}}
			if _, err := p.s.Update(ctx, info); err != nil {
				return err
			}
			p.say("label of "+z.Digest(), "b")
			return nil
		},
	}, {
		name: "an ingest is adopted",
		before: func(p *play) {
			w, err := p.s.stock.Writer(ctx, ctrdcontent.WithRef("r"))
			must(p.t, err)
			_, err = w.Write(xdata[:70_000])
			must(p.t, err)
			w.Close()
		},
		run: func(p *play) error {
			if err := p.s.AdoptIngest(ctx, "r", x); err != nil {
				return err
			}
			b, err := p.s.Blob(ctx, x, true)
			if err != nil {
				return err
			}
			defer b.Close()
			if err := b.st.checkpoint(); err != nil {
				return err
			}
			if n := b.Have().Count(); n > 0 { // not when the ingest was lost at the first try
				p.promise(x, fmt.Sprint(promisedPieces, " ", n))
			}
			return nil
		},
	}, {
		name:   "a false chain, and the right bytes",
		before: nothing,
		run: func(p *play) error {
			wrong := flip(xdata, 70_000)
			b, err := p.s.Blob(ctx, x, true)
			if err != nil {
				return err
			}
			defer b.Close()
			a, err := b.Append(ctx, 0)
			if err != nil {
				return err
			}
			defer a.Close()
			_, err = a.Write(wrong[:135_000])
			if err == nil {
				err = b.st.checkpoint()
			}
			if err == nil {
				_, err = a.Write(wrong[135_000:])
			}
			if !errors.Is(err, piece.ErrMismatch) || p.failedIn(err) {
				return err
			}
			return p.complete(x, xdata)
		},
	}, {
		name:   "dropped, and begun anew",
		before: nothing,
		run: func(p *play) error {
			b, err := p.pieces(x, xdata, 0)
			if err != nil {
				return err
			}
			defer b.Close()
			p.promise(x, "")
			if err := b.Drop(); err != nil {
				return err
			}
			b2, err := p.pieces(x, xdata, 1)
			if err != nil {
				return err
			}
			return b2.Close()
		},
	}, {
		name:  "a wrong piece is found and healed",
		mends: true,
		before: func(p *play) {
			must(p.t, p.importBlob(x, xdata))
			path := p.s.blobPath(dgst(x), Committed)
			must(p.t, os.Chmod(path, 0o600))
			overwrite(p.t, path, []byte("rotten"), 0)
			p.promise(x, promisedRotten)
		},
		run: func(p *play) error {
			b, err := p.s.Blob(ctx, x, false)
			if err != nil {
				return err
			}
			defer b.Close()
			if b.Have().Has(0) {
				err := b.Recheck(0)
				if !errors.Is(err, piece.ErrMismatch) || p.failedIn(err) {
					return err
				}
				p.promise(x, promisedWrong)
			}
			if err := b.Heal(piece.NewClaim(sumsOf(p.t, x, xdata), 0, pieceOf(x, xdata, 0))); err != nil {
				return err
			}
			p.promise(x, promisedCommitted)
			return nil
		},
	}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin plays a story's beginning, and then watches the disk.
func (story *powerStory) begin(t testing.TB) *play {
	top := filepath.Join(t.TempDir(), "disk")
	must(t, os.Mkdir(top, 0o700))
	p := &play{t: t, root: filepath.Join(top, "content"), said: map[string]string{}}
	if story.mends {
		p.said[mends] = "yes"
	}
	if story.before != nil {
		must(t, p.open())
		story.before(p)
	}
	p.disk = disktest.Watch(t, top)
	for what, promise := range p.said {
		p.disk.Say(what, promise)
	}
	return p
}

func (p *play) open() (err error) {
	cfg := Config{Root: p.root, FreeFloor: -1, Report: func(err error) { p.reported = append(p.reported, err) }}
	if p.said[mends] != "" {
		cfg.Wrong = func(piece.ID, int) {}
	}
	p.s, err = Open(p.t.Context(), cfg)
	return err
}

// mends is said of a store that has Config.Wrong.
const mends = "mends"

// end plays the rest, until something fails, and lets go of the directory.
func (p *play) end(story *powerStory) error {
	if p.s == nil {
		if err := p.open(); err != nil {
			return err
		}
	}
	return story.run(p)
}

func (p *play) close() {
	p.disk.Stop() // a crash does not close
	if p.s != nil {
		p.s.Close()
	}
}

// anotherBoot makes the machine look as if it had been down since.
func anotherBoot(t testing.TB) {
	was := bootID
	t.Cleanup(func() { bootID = was })
	bootID = func() [16]byte { return [16]byte{1} }
}

// ways are what is tried of what a power cut may leave.
var ways = []disktest.Survival{
	disktest.Nothing, disktest.Names, disktest.Everything, disktest.Anything(1), disktest.Anything(2),
}

// The power goes after each operation of each step of FORMAT.md. What was promised is
// there and whole, nothing half is, a map covers nothing that is not there, and
// nothing is left behind for ever.
func TestPowerCut(t *testing.T) {
	for _, story := range powerStories() {
		t.Run(story.name, func(t *testing.T) {
			p := story.begin(t)
			err := p.end(&story)
			p.close()
			if err != nil || len(p.reported) > 0 {
				t.Fatal(err, p.reported)
			}
			anotherBoot(t)
			n := p.disk.Cuts(ways, checkPower)
			t.Logf("%d operations, %d different disks", len(p.disk.Ops())-1, n)
			if testing.Verbose() {
				t.Log(strings.Join(p.disk.Ops(), "\n"))
			}
		})
	}
}

// A piece that was dropped and came again was not synced, although it was before: if the
// next sync fails it comes once more.
func TestSyncFailsAfterRecheck(t *testing.T) {
	top := filepath.Join(t.TempDir(), "disk")
	must(t, os.Mkdir(top, 0o700))
	p := &play{t: t, root: filepath.Join(top, "content"), said: map[string]string{}}
	must(t, p.open())
	defer p.close()
	const again = 1
	id, data := testBlob(t, piece.SHA256, 300_000, 1)
	sums := sumsOf(t, id, data)
	write := func(b *Blob, i int) { must(t, b.WritePiece(piece.NewClaim(sums, i, pieceOf(id, data, i)))) }
	b := mustBlob(t, p.s, id, true)
	defer b.Close()
	for i := range id.Pieces() {
		write(b, i)
	}
	fails := func(kind disk.Kind, n int) { // the n-th operation from here
		p.disk = disktest.Watch(t, top)
		defer p.disk.Stop()
		p.disk.FailAt(n, syscall.EIO)
		if err := b.Complete(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Fatalf("Complete says %v", err)
		}
		if op, _ := p.disk.Failed(); op.Kind != kind {
			t.Fatalf("%s of %s has failed, want %s", op.Kind, op.Path, kind)
		}
	}
	fails(disk.OpOpen, 1) // of the sums, after the data were synced
	if _, err := b.File().WriteAt([]byte("rotten"), id.Offset(again)); err != nil {
		t.Fatal(err)
	}
	if err := b.Recheck(again); !errors.Is(err, piece.ErrMismatch) {
		t.Fatalf("Recheck says %v", err)
	}
	write(b, again)
	fails(disk.OpDatasync, 0)
	for i, have := 0, b.Have(); i < id.Pieces(); i++ {
		if have.Has(i) != (i != again) {
			t.Errorf("after the failed sync piece %d counts: %v", i, have.Has(i))
		}
	}
}

// Each operation fails once. The error says which file, nothing is promised that is
// not so, and when the disk works again so does the store.
func TestFailingDisk(t *testing.T) {
	for _, story := range powerStories() {
		t.Run(story.name, func(t *testing.T) {
			for n := 0; ; n++ {
				fail := disktest.Errs[n%len(disktest.Errs)]
				p := story.begin(t)
				p.disk.FailAt(n, fail)
				err := p.end(&story)
				failed, ok := p.disk.Failed()
				if !ok {
					must(t, err)
					p.close()
					break
				}
				what := fmt.Sprintf("operation %d, %s of %s, fails: ", n, failed.Kind, failed.Path)
				named := err != nil && (strings.Contains(err.Error(), failed.Path) || strings.Contains(err.Error(), filepath.Base(failed.Path)))
				if err != nil && (!named || !errors.Is(err, fail)) {
					t.Errorf("%sthe error names no file, or not why: %v", what, err)
				}
				if err != nil && p.s != nil {
					if err := story.run(p); err != nil {
						t.Errorf("%slater it works again, and says %v", what, err)
					}
				}
				p.close()
				func() {
					was := bootID
					defer func() { bootID = was }()
					anotherBoot(t)
					p.disk.LastCut(ways[:1], checkPower)
				}()
			}
		})
	}
}
