package benchkit

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/capelin-io/capelin/integration/harness"
)

// RandomImage makes an image of one layer of size random bytes, in a file below dir whose
// path it returns. The layer is for moving only: it is no archive.
func RandomImage(dir string, size int64, seed uint64) (img *harness.Image, path string, err error) {
	path = filepath.Join(dir, fmt.Sprintf("random-%d-%d", size, seed))
	f, err := os.Create(path)
	if err != nil {
		return nil, "", err
	}
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, err = io.CopyN(f, rand.NewChaCha8(key), size)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, "", err
	}
	img, err = harness.ImageOf(harness.LayerBlob{Path: path, Compression: harness.Uncompressed})
	return img, path, err
}
