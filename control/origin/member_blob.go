package origin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
	"github.com/capelin-io/capelin/swarm/piece"
)

// Open is Client.Open at this member, which answers from its own disk and its backends, and asks no other
// member. The reader fails as soon as the member does; errdefs.ErrUnavailable then. The bytes are those that the
// member gave: whoever needs them to be the blob's verifies them.
func (m *Member) Open(ctx context.Context, ref Ref, off, n int64) (io.ReadCloser, Info, error) {
	if err := check(ref); err != nil {
		return nil, Info{}, err
	}
	if off < 0 || n == 0 {
		return nil, Info{}, fmt.Errorf("reading %d bytes of %s at %d: %w", n, ref, off, errdefs.ErrOutOfRange)
	}
	r := &reader{c: m.c, ctx: ctx, ref: ref, off: off, n: n, once: true}
	info, err := r.ask(m.o, hopPath(ref))
	if err != nil {
		return nil, Info{}, err
	}
	return r, info, nil
}

// Sums returns the sums that the member keeps of a blob, all of them; errdefs.ErrNotFound if it keeps none.
// They are what the member says: only the pieces show whether they are true.
func (m *Member) Sums(ctx context.Context, id piece.ID) (*piece.Sums, error) {
	q := url.Values{ParamSize: {strconv.FormatInt(id.Size, 10)}}
	stall := httpclient.NewStall(ctx, stallTimeout)
	defer stall.End()
	stall.Start(openTimeout)
	r := &httpclient.Request{Method: http.MethodGet, Path: PathBlobs + "/" + id.Digest() + SumsOf + "?" + q.Encode()}
	resp, err := m.c.send(stall.Context(), m.o, r) //nolint:bodyclose // body, below, is closed
	if err != nil {
		return nil, err
	}
	body := stall.Answer(resp.Body)
	defer body.Close()
	sums := piece.NewSums(id)
	want := sums.MaxLen() * id.Alg.Size()
	if resp.ContentLength != int64(want) {
		return nil, m.c.http.Stranger(m.o, r, fmt.Sprintf("%d bytes of sums, not %d", resp.ContentLength, want))
	}
	states := make([]byte, want) // 8 MiB at most
	if _, err := io.ReadFull(body, states); err != nil {
		return nil, fmt.Errorf("origin %s: sums of %s: %w: %w", m.o.Base, id, err, errdefs.ErrUnavailable)
	}
	return sums, sums.Append(states)
}
