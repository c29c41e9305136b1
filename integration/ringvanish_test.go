package integration

import (
	"io"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// A member's machine vanishes: nobody is told that its connections end. What was under way with it goes on with another one within
// seconds, and nobody waits long for it on the connections that were kept.
func TestRingMachineVanishes(t *testing.T) {
	t.Parallel()
	r := newRing(t, 3, quick(nil))
	blobs := r.pushed(t, 24, 1<<20)
	big := r.pushed(t, 1, 40<<20)[0]
	warm := func() { // connections to each of them, which are kept
		none(t, "pulls", each(blobs, 12, func(b *ringBlob) error { return pull(r.ctx, r.client, b) }))
	}
	warm()
	victim := owners(r.ring.Members, big, 3)[0]
	up := r.blob(24 << 20)
	for owners(r.ring.Members, up, 3)[0] != victim {
		up = r.blob(up.size)
	}
	body, _, err := r.client.Open(r.ctx, big.ref(), 0, -1)
	must(t, err)
	defer body.Close()
	get(io.ReadFull(body, make([]byte, 4<<20)))(t)
	id := get(r.client.StartUpload(r.ctx, ringNamespace, up.digest))(t)
	var began time.Time
	src := &breaking{r: up.open(0), at: up.size / 2, breaks: func() {
		began = time.Now()
		must(t, r.c.SetLink(victim.Host, false))
	}}
	if _, err := r.client.Append(r.ctx, id, 0, src); err == nil {
		t.Fatal("the upload was at another member")
	}
	noticed := time.Since(began)
	var read, pushed, pulled time.Duration
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.Copy(io.Discard, body)
		read = time.Since(began)
		return err
	})
	g.Go(func() error {
		off, err := r.client.UploadOffset(r.ctx, id)
		if err == nil {
			err = pushOn(r.ctx, r.client, id, up, off)
		}
		pushed = time.Since(began)
		return err
	})
	g.Go(func() error {
		warm()
		pulled = time.Since(began)
		return nil
	})
	must(t, g.Wait())
	figure(t, "a machine of three vanished: a push of 24 MiB that was half there broke off after %.1f s and was done after %.1f s, "+
		"a read of 40 MiB that had begun there after %.1f s, 24 pulls on connections that were kept after %.1f s",
		noticed.Seconds(), pushed.Seconds(), read.Seconds(), pulled.Seconds())
	within(t, "noticed", noticed, 10*time.Second)
	must(t, pull(r.ctx, r.client, up))
}
