package origin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// Copy is an upload as the member of a ring that leads it names it to others
// (control/ORIGIN.md section 4).
type Copy struct {
	ID   string // at all members
	From string // the member's name
	Term uint64 // by which it leads
}

// Stand is how an upload stands at a member. It is known after errors, too, as far as the
// member has said it.
type Stand struct {
	Offset    int64
	Term      uint64 // that it obeys, or leads by
	Leads     bool
	Feeds     bool          // it leads, and whoever asks is its mirror
	Committed digest.Digest // what the upload became; "": nothing yet
}

// Member is another member of a ring, as an origin asks it. It is safe for concurrent use.
type Member struct {
	c *Client
	o *httpclient.Server
}

// NewMember returns the member at one of cfg's addresses, the first. It does not connect yet.
func NewMember(cfg Config) (*Member, error) {
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return &Member{c, c.origins[c.names[0]]}, nil
}

// Base returns the member's URL.
func (m *Member) Base() string { return m.o.Base }

// Close closes idle connections.
func (m *Member) Close() { m.c.Close() }

// Stat is Client.Stat at this member, which answers from its own disk and its backends, and asks no other member.
func (m *Member) Stat(ctx context.Context, ref Ref) (Info, error) {
	ctx, cancel := httpclient.Within(ctx, statTimeout)
	defer cancel()
	resp, err := m.c.send(ctx, m.o, &httpclient.Request{Method: "HEAD", Path: hopPath(ref)})
	if err != nil {
		return Info{}, err
	}
	resp.Body.Close()
	return m.c.readInfo(m.o, resp)
}

// Start begins an upload that another member leads, unless it is there, and returns where it stands.
// A member of an earlier release does not learn whose it is.
func (m *Member) Start(ctx context.Context, u Copy, as NewUpload) (Stand, error) {
	q := url.Values{ParamNamespace: {as.Namespace}, ParamID: {u.ID}}
	if as.Digest != "" {
		q.Set(ParamDigest, string(as.Digest))
	}
	if as.Owner != "" {
		q.Set(ParamOwner, as.Owner)
	}
	st, _, err := m.ask(ctx, u, &httpclient.Request{Method: "POST", Path: PathUploads}, q)
	if errdefs.IsInvalidArgument(err) && q.Has(ParamOwner) {
		q.Del(ParamOwner)
		st, _, err = m.ask(ctx, u, &httpclient.Request{Method: "POST", Path: PathUploads}, q)
	}
	return st, err
}

// Append is Client.Append.
func (m *Member) Append(ctx context.Context, u Copy, off int64, r io.Reader) (Stand, error) {
	stall := httpclient.NewStall(ctx, stallTimeout)
	defer stall.End()
	st, _, err := m.ask(stall.Context(), u, &httpclient.Request{
		Method: "PATCH", Path: PathUploads + "/" + u.ID, Body: stall.Sending(r),
		Header: http.Header{"Content-Type": {"application/octet-stream"}, "Expect": {"100-continue"}},
	}, url.Values{ParamOffset: {strconv.FormatInt(off, 10)}})
	return st, err
}

// Commit has the member make the upload, of size bytes, the blob d, synced. Not done: it is at it still.
func (m *Member) Commit(ctx context.Context, u Copy, size int64, d digest.Digest) (st Stand, done bool, err error) {
	q := url.Values{ParamDigest: {string(d)}, ParamOffset: {strconv.FormatInt(size, 10)}}
	st, status, err := m.ask(ctx, u, &httpclient.Request{Method: "PUT", Path: PathUploads + "/" + u.ID}, q)
	return st, status != http.StatusAccepted, err
}

// Cancel removes the upload from the member.
func (m *Member) Cancel(ctx context.Context, u Copy) error {
	_, _, err := m.ask(ctx, u, &httpclient.Request{Method: "DELETE", Path: PathUploads + "/" + u.ID}, url.Values{})
	return err
}

// Stands returns how an upload stands there. u.Term does not matter.
func (m *Member) Stands(ctx context.Context, u Copy) (Stand, error) {
	u.Term = 0
	st, _, err := m.ask(ctx, u, &httpclient.Request{Method: "HEAD", Path: PathUploads + "/" + u.ID}, url.Values{})
	return st, err
}

// ask makes a request that begins with From and Term.
func (m *Member) ask(ctx context.Context, u Copy, r *httpclient.Request, q url.Values) (st Stand, status int, err error) {
	q.Set(ParamFrom, u.From)
	if u.Term > 0 {
		q.Set(ParamReplica, strconv.FormatUint(u.Term, 10))
	}
	r.Path += "?" + q.Encode()
	resp, err := m.c.send(ctx, m.o, r)
	if resp == nil {
		return st, 0, err
	}
	resp.Body.Close()
	h := resp.Header
	for _, n := range []struct {
		header string
		put    func(uint64)
	}{{HeaderOffset, func(n uint64) { st.Offset = int64(n) }}, {HeaderTerm, func(n uint64) { st.Term = n }}} {
		if text := h.Get(n.header); text != "" {
			v, perr := strconv.ParseUint(text, 10, 63)
			if perr != nil {
				return st, 0, m.c.http.Stranger(m.o, r, fmt.Sprintf("%s is %q", n.header, shorten(text)))
			}
			n.put(v)
		}
	}
	st.Leads, st.Feeds = h.Get(HeaderLeads) == "true", h.Get(HeaderFeeds) == "true"
	st.Committed = digest.Digest(h.Get(HeaderDigest))
	if st.Committed != "" && CheckDigest(st.Committed) != nil {
		return st, 0, m.c.http.Stranger(m.o, r, fmt.Sprintf("%s is %q", HeaderDigest, shorten(string(st.Committed))))
	}
	return st, resp.StatusCode, err
}
