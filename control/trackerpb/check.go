package trackerpb

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"strconv"
	"unicode/utf8"

	"github.com/capelin-io/capelin/swarm/piece"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Bits of Welcome.features.
const (
	FeatureOffers = 1 << 0 // the tracker answers an Offer
	FeatureSlow   = 1 << 1 // it grants leases to those whose sources are slow (Want.slow)
)

// Limits of the protocol; PROTOCOL.md, "Limits".
const (
	MaxCluster  = 64  // bytes
	MaxNode     = 253 // bytes
	MaxZone     = 64  // bytes
	MaxAddr     = 261 // bytes: a name, a colon, a port
	MaxAddrs    = 7   // in a Hello or a Peer, beside addr
	MaxSoftware = 64  // bytes
	MaxError    = 256 // bytes
	MaxRegistry = 261 // bytes: a name, a colon, a port
	MaxLost     = 32  // names in a Want
	MaxBatch    = 1000
	MaxMessage  = 1 << 20 // bytes of one encoded message, either direction

	MaxSelected = 10_000 // names of nodes in a Selection
	MaxZones    = 1000   // in a Selection
)

// ErrInvalid is wrapped by every complaint about a message.
var ErrInvalid = errors.New("message not allowed by the protocol")

// FromID returns the wire form of a blob's name.
func FromID(id piece.ID) *Blob {
	return &Blob{Digest: append([]byte(nil), id.Sum[:id.Alg.Size()]...), Size: id.Size}
}

// ID returns the blob's name, or an error wrapping ErrInvalid.
func (b *Blob) ID() (piece.ID, error) {
	id := piece.ID{Size: b.GetSize()}
	switch len(b.GetDigest()) {
	case 32:
		id.Alg = piece.SHA256
	case 64:
		id.Alg = piece.SHA512
	default:
		return piece.ID{}, fmt.Errorf("digest of %d bytes: %w", len(b.GetDigest()), ErrInvalid)
	}
	copy(id.Sum[:], b.GetDigest())
	if err := id.Validate(); err != nil {
		return piece.ID{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return id, nil
}

// Len returns the number of blobs; b may be nil.
func (b *Blobs) Len() int { return len(b.GetSizes()) }

// Add appends a blob, or returns false if it has another algorithm than those before.
func (b *Blobs) Add(id piece.ID) bool {
	n := id.Alg.Size()
	if len(b.Digests) != n*len(b.Sizes) {
		return false
	}
	b.Digests = append(b.Digests, id.Sum[:n]...)
	b.Sizes = append(b.Sizes, id.Size)
	return true
}

// Check reports what is wrong with the list, in an error wrapping ErrInvalid. b may be
// nil.
func (b *Blobs) Check() error {
	n := b.Len()
	if d := len(b.GetDigests()); d != 32*n && d != 64*n {
		return fmt.Errorf("digests of %d bytes for %d blobs: %w", d, n, ErrInvalid)
	}
	for i := range n {
		if id := b.ID(i); id.Validate() != nil {
			return fmt.Errorf("%w: %w", id.Validate(), ErrInvalid)
		}
	}
	return nil
}

// ID returns the name of the i-th blob of a list that Check has nothing against.
func (b *Blobs) ID(i int) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: b.Sizes[i]}
	n := len(b.Digests) / len(b.Sizes)
	if n == 64 {
		id.Alg = piece.SHA512
	}
	copy(id.Sum[:], b.Digests[i*n:(i+1)*n])
	return id
}

// Add appends a complete blob and the hash of its sums, nil if there is none. It
// returns false if the blob has another algorithm than those before.
func (v *Inventory) Add(id piece.ID, sumsHash *[32]byte) bool {
	if v.Blobs == nil {
		v.Blobs = &Blobs{}
	}
	if !v.Blobs.Add(id) {
		return false
	}
	if sumsHash == nil {
		sumsHash = &[32]byte{}
	}
	v.SumsHashes = append(v.SumsHashes, sumsHash[:]...)
	return true
}

// SumsHash returns the hash of the sums of the i-th blob, or nil.
func (v *Inventory) SumsHash(i int) []byte {
	h := v.SumsHashes[32*i:][:32]
	if [32]byte(h) == [32]byte{} {
		return nil
	}
	return h
}

// BlobKey returns how an Offer names a blob.
func BlobKey(id piece.ID) uint64 {
	return binary.BigEndian.Uint64(id.Sum[:8]) + uint64(id.Size)
}

// SumsKey returns how an Offer names a hash of sums, nil if there is none.
func SumsKey(sumsHash *[32]byte) uint64 {
	if sumsHash == nil {
		return 0
	}
	return binary.BigEndian.Uint64(sumsHash[:8])
}

// Add appends a complete blob and the hash of its sums, nil if there is none.
func (o *Offer) Add(id piece.ID, sumsHash *[32]byte) {
	o.Blobs = append(o.Blobs, BlobKey(id))
	o.Sums = append(o.Sums, SumsKey(sumsHash))
}

// Set notes that the i-th blob is to be announced.
func (a *Accept) Set(i int) {
	for len(a.Blobs) <= i/8 {
		a.Blobs = append(a.Blobs, 0)
	}
	a.Blobs[i/8] |= 1 << (i % 8)
}

// Has reports whether the i-th blob is to be announced.
func (a *Accept) Has(i int) bool {
	return i/8 < len(a.GetBlobs()) && a.Blobs[i/8]>>(i%8)&1 != 0
}

// Count returns how many blobs are to be announced.
func (a *Accept) Count() (n int) {
	for _, b := range a.GetBlobs() {
		n += bits.OnesCount8(b)
	}
	return n
}

// Announced returns how many blobs the batch announces or offers.
func (m *FromAgent) Announced() int {
	n := len(m.Announces)
	for _, v := range m.Inventory {
		n += v.GetBlobs().Len()
	}
	for _, o := range m.Offers {
		n += len(o.GetBlobs())
	}
	return n
}

func checkText(what, s string, min, max int) error {
	if len(s) < min || len(s) > max {
		return fmt.Errorf("%s of %d bytes, want %d..%d: %w", what, len(s), min, max, ErrInvalid)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s is not UTF-8: %w", what, ErrInvalid)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("%s %q has a control character: %w", what, s, ErrInvalid)
		}
	}
	return nil
}

// CheckHello reports what is wrong with a Hello, other than its version and its
// cluster's name, which are the tracker's to judge.
func CheckHello(h *Hello) error {
	if h == nil {
		return fmt.Errorf("no hello in the first message: %w", ErrInvalid)
	}
	for _, err := range []error{
		checkText("cluster", h.Cluster, 1, MaxCluster),
		checkText("node", h.Node, 1, MaxNode),
		checkText("zone", h.Zone, 0, MaxZone),
		checkText("software", h.Software, 0, MaxSoftware),
	} {
		if err != nil {
			return err
		}
	}
	if h.Addr != "" {
		if err := checkAddr(h.Addr); err != nil {
			return err
		}
	} else if len(h.Addrs) > 0 {
		return fmt.Errorf("%d addrs, and no addr: %w", len(h.Addrs), ErrInvalid)
	}
	if len(h.Addrs) > MaxAddrs {
		return fmt.Errorf("%d addrs, at most %d: %w", len(h.Addrs), MaxAddrs, ErrInvalid)
	}
	if err := each(h.Addrs, checkAddr); err != nil {
		return err
	}
	if h.Role != Role_ROLE_AGENT && h.Role != Role_ROLE_ORIGIN {
		return fmt.Errorf("role %d: %w", h.Role, ErrInvalid)
	}
	return nil
}

func checkAddr(addr string) error {
	if err := checkText("addr", addr, 1, MaxAddr); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("addr: %w: %w", err, ErrInvalid)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return fmt.Errorf("addr %q is not host:port: %w", addr, ErrInvalid)
	}
	return nil
}

// CheckBatch reports what is wrong with a FromAgent; its hello is not looked
// at. After it every blob in the batch has a valid ID.
func CheckBatch(m *FromAgent) error {
	n := m.Announced() + len(m.Inventory) + len(m.Wants) + len(m.Unwants) + len(m.Progress) +
		len(m.Done) + len(m.Disproved) + len(m.Results) + len(m.NotHere)
	for _, r := range m.Results {
		n += len(r.GetBlobs())
	}
	for _, w := range m.Wants {
		n += len(w.GetLost())
	}
	if n > MaxBatch {
		return fmt.Errorf("batch of %d elements, at most %d: %w", n, MaxBatch, ErrInvalid)
	}
	return cmp.Or(
		each(m.Announces, checkAnnounce),
		each(m.Inventory, checkInventory),
		each(m.Offers, checkOffer),
		each(m.NotHere, checkBlob("not here")),
		each(m.Wants, checkWant),
		each(m.Unwants, checkBlob("unwant")),
		each(m.Progress, checkLeaseProgress),
		each(m.Done, checkLeaseDone),
		each(m.Disproved, checkDisproved),
		each(m.Results, checkResult),
	)
}

// each returns what check has against the first of a list's elements that is not right.
func each[T any](list []T, check func(T) error) error {
	for _, e := range list {
		if err := check(e); err != nil {
			return err
		}
	}
	return nil
}

// checkBlob returns a check of names of blobs, whose errors say what they are for.
func checkBlob(what string) func(*Blob) error {
	return func(b *Blob) error {
		if _, err := b.ID(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
}

// CheckBlobs reports what is wrong with the blobs of a PreheatRequest or a
// DropRequest.
func CheckBlobs(blobs []*Blob) error {
	if n := len(blobs); n == 0 || n > MaxBatch {
		return fmt.Errorf("%d blobs, want 1..%d: %w", n, MaxBatch, ErrInvalid)
	}
	for _, b := range blobs {
		if _, err := b.ID(); err != nil {
			return err
		}
	}
	return nil
}

// CheckSelection reports what is wrong with a choice of nodes.
func CheckSelection(s *Selection) error {
	if s == nil || !s.All && len(s.Nodes)+len(s.Zones)+len(s.Roles) == 0 {
		return fmt.Errorf("no nodes are selected: name nodes, zones or roles, or all: %w", ErrInvalid)
	}
	if len(s.Nodes) > MaxSelected || len(s.Zones) > MaxZones || len(s.Roles) > len(Role_name) {
		return fmt.Errorf("%d nodes, %d zones and %d roles are selected, at most %d, %d and %d can be: %w",
			len(s.Nodes), len(s.Zones), len(s.Roles), MaxSelected, MaxZones, len(Role_name), ErrInvalid)
	}
	for _, n := range s.Nodes {
		if err := checkText("node", n, 1, MaxNode); err != nil {
			return err
		}
	}
	return nil
}

func checkWant(w *Want) error {
	if err := checkBlob("want")(w.GetBlob()); err != nil {
		return err
	}
	if n := len(w.Lost); n > MaxLost {
		return fmt.Errorf("want: %d lost nodes, at most %d: %w", n, MaxLost, ErrInvalid)
	}
	return each(w.Lost, func(node string) error { return checkText("want: lost node", node, 1, MaxNode) })
}

func checkAnnounce(a *Announce) error {
	id, err := a.GetBlob().ID()
	if err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	if a.State < State_STATE_GONE || a.State > State_STATE_COMPLETE {
		return fmt.Errorf("announce of %s: state %d: %w", id, a.State, ErrInvalid)
	}
	if n := len(a.SumsHash); n != 0 && (n != 32 || a.State != State_STATE_COMPLETE) {
		return fmt.Errorf("announce of %s: hash of %d bytes in state %d: %w", id, n, a.State, ErrInvalid)
	}
	return nil
}

func checkInventory(v *Inventory) error {
	if err := v.GetBlobs().Check(); err != nil {
		return fmt.Errorf("inventory: %w", err)
	}
	if h, n := len(v.GetSumsHashes()), v.GetBlobs().Len(); h != 32*n {
		return fmt.Errorf("inventory: hashes of %d bytes for %d blobs: %w", h, n, ErrInvalid)
	}
	return nil
}

func checkOffer(o *Offer) error {
	if b, s := len(o.GetBlobs()), len(o.GetSums()); b != s || b == 0 {
		return fmt.Errorf("offer of %d blobs with %d sums: %w", b, s, ErrInvalid)
	}
	return nil
}

func checkLeaseProgress(p *LeaseProgress) error {
	id, err := p.GetBlob().ID()
	if err != nil {
		return fmt.Errorf("lease progress: %w", err)
	}
	if p.Bytes < 0 || p.Bytes > id.Size {
		return fmt.Errorf("lease progress of %d bytes in %s: %w", p.Bytes, id, ErrInvalid)
	}
	return checkText("lease progress: registry", p.Registry, 0, MaxRegistry)
}

func checkLeaseDone(d *LeaseDone) error {
	if err := checkBlob("lease done")(d.GetBlob()); err != nil {
		return err
	}
	if d.Outcome < Outcome_OUTCOME_COMPLETE || d.Outcome > Outcome_OUTCOME_CANCELLED {
		return fmt.Errorf("lease done: outcome %d: %w", d.Outcome, ErrInvalid)
	}
	return checkText("lease done: error", d.Error, 0, MaxError)
}

func checkDisproved(d *Disproved) error {
	if err := checkBlob("disproved")(d.GetBlob()); err != nil {
		return err
	}
	if len(d.SumsHash) != 32 {
		return fmt.Errorf("disproved: hash of %d bytes: %w", len(d.SumsHash), ErrInvalid)
	}
	return nil
}

func checkResult(r *CommandResult) error {
	if err := checkText("command result: error", r.GetError(), 0, MaxError); err != nil {
		return err
	}
	if r.GetBytes() < 0 {
		return fmt.Errorf("command result: %d bytes: %w", r.GetBytes(), ErrInvalid)
	}
	if err := each(r.GetBlobs(), checkAnnounce); err != nil {
		return fmt.Errorf("command result: %w", err)
	}
	return nil
}
