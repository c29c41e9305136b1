package fetcher

import (
	"context"
	_ "crypto/sha256" // digests need both
	_ "crypto/sha512"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Backend is a storage of objects. What it cannot do (see Capabilities) is
// refused with errdefs.ErrNotImplemented.
type Backend interface {
	// Name is for messages: the kind, and what tells it from others, such as
	// "file:/var/lib/capelin/backend". It has no secrets.
	Name() string
	Capabilities() Capabilities

	// Check asks the storage whether it can be used: it is reached, what the configuration
	// names (a directory, a bucket) is there, and this process may look at it. It costs a request or two, changes
	// nothing, and its error says what to do.
	Check(ctx context.Context) error

	// Stat returns what is known of an object.
	Stat(ctx context.Context, key string) (Info, error)

	// Open reads n bytes of an object from off on; a negative n: to its end. Info
	// is the whole object's. A range that goes beyond the end is cut; an off that is
	// beyond it, or negative, is errdefs.ErrOutOfRange, and off = size reads nothing.
	// The reader returns an error that is io.ErrUnexpectedEOF if it ends early, and
	// never bytes of two versions. ctx governs the reader, too. Whoever opens closes.
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, Info, error)

	// Write stores an object of size bytes (negative: unknown) from r, replacing
	// what is there. It is all or nothing: nobody sees a part of it, and after an
	// error, a short or long r included (errdefs.ErrInvalidArgument), what was there
	// before is there still. An error of r is wrapped. Write is durable when it
	// returns. It ends with ctx as soon as r returns from Read.
	Write(ctx context.Context, key string, size int64, r io.Reader) (Info, error)

	// WriteIf stores a small object if what is there has this Info.Version; "":
	// if there is nothing. Otherwise the error is errdefs.ErrConflict. Atomic among
	// all users of the storage, in other processes too. Durable when it returns.
	WriteIf(ctx context.Context, key string, data []byte, version string) (Info, error)

	// List returns at most limit objects (1..1000, otherwise 1000) whose keys begin
	// with prefix, which ends in "/" or is empty, and come after the key or string
	// after, in ascending order of bytes. more says that there are others.
	List(ctx context.Context, prefix, after string, limit int) (page []Info, more bool, err error)

	// Delete removes an object. It is no error if there is none.
	Delete(ctx context.Context, key string) error

	Close() error
}

// Capabilities says what a Backend can do beside Stat and Open.
type Capabilities struct {
	Write, List, Delete bool
	// CompareAndSwap: WriteIf works. The index needs it.
	CompareAndSwap bool
	// Generations: Info.Version changes with each write, also with one of the bytes that were there before, at once
	// or earlier. Without it, a version can come back with its bytes (an ETag that is a checksum), and
	// whoever compares and swaps must put something into the bytes that never comes again.
	Generations bool
	// NeedsRepository: a digest alone finds nothing; Locator.Locate must be
	// given the namespace.
	NeedsRepository bool
}

// Info is what a Backend knows of an object.
type Info struct {
	Key  string
	Size int64 // bytes; -1: the storage does not say
	// Version changes with each write that changes bytes, and with every write if the backend has Generations.
	// It is opaque; empty if the backend cannot compare and swap.
	Version  string
	Modified time.Time // zero: unknown
}

// Locator is a Backend that names blobs in a way of its own.
type Locator interface {
	// Locate returns the key of a blob that belongs to a namespace, which for
	// some is a part of the name. errdefs.ErrInvalidArgument if it is missing.
	Locate(namespace string, d digest.Digest) (key string, err error)
}

// Locate returns the key of a blob in b.
func Locate(b Backend, namespace string, d digest.Digest) (string, error) {
	if l, ok := b.(Locator); ok {
		return l.Locate(namespace, d)
	}
	return BlobKey(d)
}

// BlobKey returns where backends keep a blob, unless they say otherwise:
// "blobs/sha256/ab/abcdef…". The element in between spreads directories.
func BlobKey(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("blob key of %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	hex := d.Encoded()
	return "blobs/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex, nil
}

// MaxKey is the length of a key in bytes at most.
const MaxKey = 1024

// CheckKey reports what is wrong with a key, as errdefs.ErrInvalidArgument: it is
// 1 to MaxKey bytes, of elements of 1 to 200 bytes each that are not "." or ".."
// and have no byte below 0x21, no 0x7f and no "\".
//
// What no check of one key can see: no key is another one with "/…" after it,
// because a directory cannot hold an object and objects below it by one name.
// fetcher/file refuses such a write.
func CheckKey(key string) error {
	bad := func(why string) error {
		return fmt.Errorf("key %q %s: %w", key, why, errdefs.ErrInvalidArgument)
	}
	if key == "" || len(key) > MaxKey {
		return bad("is empty or too long")
	}
	for e := range strings.SplitSeq(key, "/") {
		if e == "" || e == "." || e == ".." || len(e) > 200 {
			return bad("has an element that is empty, a dot path or too long")
		}
		for i := range len(e) {
			if e[i] < 0x21 || e[i] == 0x7f || e[i] == '\\' {
				return bad("has a forbidden character")
			}
		}
	}
	return nil
}
