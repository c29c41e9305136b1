package plugin

import (
	"context"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/plugin/fetch"
	"github.com/capelin-io/capelin/swarm/piece"
)

// disk is the store as fetches and the swarm need it.
type disk struct{ *content.Store }

// Whole reports whether all of the blob is there.
func (d *disk) Whole(id piece.ID) bool { return d.Presence(id) >= content.Cached }

// Committed reports whether containerd has the blob.
func (d *disk) Committed(id piece.ID) bool { return d.Presence(id) == content.Committed }

// OpenBlob opens the blob, or makes an empty part of it.
func (d *disk) OpenBlob(ctx context.Context, id piece.ID) (fetch.Blob, error) {
	b, err := d.Store.Blob(ctx, id, true)
	if err != nil {
		return nil, err
	}
	return diskBlob{b, d}, nil
}

// diskBlob is a content.Blob for fetches.
type diskBlob struct {
	*content.Blob
	disk *disk
}

// Publish makes the blob containerd's. It may have come in by another way, such
// as an import, while this is still a handle of a part of it.
func (b diskBlob) Publish(ctx context.Context) error {
	err := b.Blob.Publish(ctx)
	if err != nil && b.disk.Whole(b.ID()) {
		_, err = b.disk.Info(ctx, digest.Digest(b.ID().Digest()))
	}
	return err
}

func (b diskBlob) Append(ctx context.Context, off int64) (fetch.Appender, error) {
	a, err := b.Blob.Append(ctx, off)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// roomFor does what failed because the file system of an open file is full, when some space was
// freed; unless that is another one than the store's.
func (d *disk) roomFor(ctx context.Context, fd int, do func() error) error {
	var theirs, ours unix.Stat_t
	if unix.Fstat(fd, &theirs) != nil || unix.Stat(d.Root(), &ours) != nil || theirs.Dev != ours.Dev {
		return unix.ENOSPC
	}
	return d.WithRoom(ctx, roomAtOnce, do)
}

// roomAtOnce is how much is freed at once for who unpacks.
const roomAtOnce = 16 << 20

// hidden reports whether a blob is only ours, not containerd's.
func (d *disk) hidden(dgst digest.Digest) bool { return d.PresenceOf(dgst) == content.Cached }
