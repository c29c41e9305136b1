package unpack

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
)

// asContainerd checks that a gzip stream is read as containerd's decoder reads it, and reports whether it is taken.
func asContainerd(t *testing.T, gz []byte) bool {
	t.Helper()
	var want []byte
	z, werr := kgzip.NewReader(bytes.NewReader(gz))
	if werr == nil {
		want, werr = io.ReadAll(z)
	}
	d, err := decompress(t.Context(), bytes.NewReader(gz), int64(len(gz)), true, &Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.end()
	got, err := io.ReadAll(d)
	if (err == nil) != (werr == nil) {
		t.Fatalf("error %v, containerd's decoder %v", err, werr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, containerd's decoder %d", len(got), len(want))
	}
	return err == nil
}

// What the decoder refuses is refused only if containerd's refuses it, too.
func TestSecondDecoder(t *testing.T) {
	cut, err := os.ReadFile("testdata/truncated.gz")
	if err != nil {
		t.Fatal(err)
	}
	if !asContainerd(t, cut) {
		t.Error("the stream that containerd takes is refused")
	}
	gz := gzipped([]byte("some text and again some text"))
	if !asContainerd(t, gz) {
		t.Error("a good stream is refused")
	}
	for flags := range 256 {
		asContainerd(t, append([]byte{gz[0], gz[1], gz[2], byte(flags)}, gz[4:]...))
	}
	for n := 10; n < len(gz); n++ {
		asContainerd(t, gz[:n])
	}
	wrong := bytes.Clone(gz)
	wrong[len(wrong)-8] ^= 1 // the checksum: all bytes are out by then
	if asContainerd(t, wrong) {
		t.Error("a stream with a wrong checksum is taken")
	}
}

// A blob that cannot be read is no reason to try again.
func TestSecondDecoderDisk(t *testing.T) {
	gz := gzipped(bytes.Repeat([]byte("text"), 1<<20))
	broken := &brokenAt{bytes.NewReader(gz), int64(len(gz) - 5), 0}
	d, err := decompress(t.Context(), broken, int64(len(gz)), true, &Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(d); !errors.Is(err, os.ErrInvalid) || broken.failed != 1 {
		t.Errorf("%d reads failed, with %v", broken.failed, err)
	}
}

type brokenAt struct {
	r      io.ReaderAt
	at     int64
	failed int
}

func (b *brokenAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.at {
		b.failed++
		return 0, os.ErrInvalid
	}
	return b.r.ReadAt(p, off)
}

func FuzzGzip(f *testing.F) {
	cut, _ := os.ReadFile("testdata/truncated.gz")
	f.Add(cut)
	f.Add(gzipped([]byte("some text and again some text")))
	f.Fuzz(func(t *testing.T, gz []byte) {
		if len(gz) < 10 || gz[0] != 0x1f || gz[1] != 0x8b || gz[2] != 8 {
			gz = append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), gz...)
		}
		asContainerd(t, gz)
	})
}
