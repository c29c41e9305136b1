package indexd

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/internal/daemon/version"
)

// proofTimeout is how long one attempt to prove a storage may take: about 400 requests, sixteen at once.
const proofTimeout = 2 * time.Minute

// proof is whether a storage is known to compare and swap. Until it is, nothing is written. All methods may be called concurrently.
type proof struct {
	index *Index
	// open opens the storage once more, so that two clients race.
	open func() (fetcher.Backend, error)

	known  chan struct{} // closed when it is known
	failed chan error    // 1 buffered: the storage does not compare and swap

	tried chan struct{} // closed when it is known, or an attempt to find it out has failed
	once  sync.Once     // closes it

	mu  sync.Mutex
	why error // of the last attempt
}

func newProof(x *Index, open func() (fetcher.Backend, error)) *proof {
	return &proof{index: x, open: open, known: make(chan struct{}), tried: make(chan struct{}), failed: make(chan error, 1)}
}

// wait returns when it is known that the storage compares and swaps. It does not wait for a storage that is away:
// errdefs.ErrUnavailable.
func (p *proof) wait(ctx context.Context) error {
	select {
	case <-p.known:
		return nil
	default:
	}
	select {
	case <-p.tried:
	case <-ctx.Done():
	}
	select {
	case <-p.known:
		return nil
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	//nolint:errorlint // its class must not show
	return fmt.Errorf("it is not known yet whether the storage compares and swaps, so that nothing is written: %v: %w",
		cmp.Or(p.why, context.Cause(ctx)), errdefs.ErrUnavailable)
}

// is reports whether it is known that the storage compares and swaps.
func (p *proof) is() bool {
	select {
	case <-p.known:
		return true
	default:
		return false
	}
}

// find finds it out: from what is remembered in the storage, or else by trying. If the storage does not compare and swap, it is in
// p.failed, and the error nil: nothing is to be tried again.
func (p *proof) find(ctx context.Context) error {
	err := p.remembered(ctx)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		_, err = p.prove(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.why = err
	if err == nil {
		close(p.known)
	}
	p.once.Do(func() { close(p.tried) })
	if refuted(err) {
		select {
		case p.failed <- err:
		default: // "again" has said it
		}
		return nil
	}
	return err
}

// remembered is errdefs.ErrNotFound if nothing is remembered of this storage.
func (p *proof) remembered(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	var o proofObject
	_, err := p.index.read(ctx, proofKey(p.index.backend.Name()), &o)
	return err
}

// prove has writers race, and remembers that the storage stood it, or no longer that it did.
func (p *proof) prove(ctx context.Context) (index.Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	x := p.index
	name := x.backend.Name()
	if err := x.backend.Check(ctx); err != nil {
		//nolint:errorlint // its class says nothing about comparing and swapping
		return index.Proof{}, fmt.Errorf("%v: %w", err, errdefs.ErrUnavailable)
	}
	other, err := p.open()
	if err != nil {
		return index.Proof{}, fmt.Errorf("%v: %w", err, errdefs.ErrUnavailable) //nolint:errorlint // as above
	}
	defer func() {
		if other != x.backend {
			_ = other.Close()
		}
	}()
	start := time.Now()
	if err := fetcher.Prove(ctx, x.backend, other); err != nil {
		if refuted(err) {
			_ = x.backend.Delete(context.WithoutCancel(ctx), proofKey(name))
			err = fmt.Errorf("this storage cannot keep an index: tags that were acknowledged would be lost: %w", err)
		}
		return index.Proof{}, err
	}
	o := proofObject{formatVersion, name, x.now().UTC().Round(0), version.Version()}
	if err := x.write(ctx, proofKey(name), &o); err != nil {
		return index.Proof{}, err
	}
	log.G(ctx).WithFields(log.Fields{"storage": name, "took": time.Since(start).Round(time.Millisecond)}).
		Info("the storage compares and swaps")
	return index.Proof{Storage: o.Storage, Proved: o.Proved, By: o.By}, nil
}

// again proves the storage once more. If it fails, so does the index.
func (p *proof) again(ctx context.Context) (index.Proof, error) {
	is, err := p.prove(ctx)
	if refuted(err) {
		select {
		case p.failed <- err:
		default: // said already
		}
	}
	return is, err
}

// refuted reports whether an error of Prove says that the storage does not compare and swap, and not that this could not be found out.
func refuted(err error) bool {
	return err != nil && !errdefs.IsUnavailable(err) && (errdefs.IsFailedPrecondition(err) || errdefs.IsNotImplemented(err))
}

// run finds it out, with patience for a storage that is away, and then watches over it. Its error is that of a storage
// that does not compare and swap.
func (p *proof) run(ctx context.Context, overcome func(do func() error) error) error {
	err := overcome(func() error {
		err := p.find(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was ended, which is nothing to complain of
		}
		return err
	})
	if err != nil {
		return nil //nolint:nilerr // ctx's
	}
	select {
	case err := <-p.failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// proofKey is where it is remembered of a storage of that name: what was copied to another storage does not count there.
func proofKey(storage string) string { return provedPrefix + digest.FromString(storage).Encoded() }
