package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/capelin-io/capelin/integration/harness"
)

// Item 6: authorize = "blob", where registries decide about each blob.
var blobByBlob = []scenario{
	{"6", "no ranges: 416", attempts, cannotContinue(func(r harness.Request, _ string) harness.Fault {
		if r.Range == "" {
			return harness.Fault{}
		}
		return harness.Fault{Status: http.StatusRequestedRangeNotSatisfiable}
	})},
	{"6", "no ranges: 403 of a store behind a redirect", attempts, cannotContinue(func(r harness.Request, store string) harness.Fault {
		return harness.Fault{Status: http.StatusTemporaryRedirect, Location: "http://" + store + r.Path}
	})},
	{"6", "no ranges: 200 and HTML", attempts, cannotContinue(func(r harness.Request, _ string) harness.Fault {
		if r.Range == "" {
			return harness.Fault{}
		}
		return harness.Fault{Status: http.StatusOK, HTML: "<!DOCTYPE html><title>Sign in</title>"}
	})},
	{"6", "a registry of one's own, by the shim", []row{
		{Name: "it answers HEAD alone", Unit: "MB without a right", goal: count(0, "MB without a right")},
		{Name: "it sends other bytes", Unit: "MB without a right", goal: count(0, "MB without a right")},
	}, ownRegistry},
}

// attempts are the rows of an image of six layers, and of another one after it.
var attempts = []row{
	{Name: "first image", Unit: "attempts", goal: count(2, "attempts")},
	{Name: "next image", Unit: "attempts", goal: count(1, "attempts")},
}

const maxAttempts = 12

var errInsisted = errors.New("no attempt has succeeded")

// cannotContinue measures how often an image of six layers that a seeder has must be
// pulled until that succeeds, and then another one. fault is what the registry makes of a GET
// of a blob; a store is one that answers ranges with 403.
func cannotContinue(fault func(r harness.Request, store string) harness.Fault) func(context.Context, *world) ([]value, error) {
	return func(ctx context.Context, w *world) ([]value, error) {
		store, err := w.another(ctx)
		if err != nil {
			return nil, err
		}
		imgs := make([]image, 2)
		for i := range imgs {
			o := harness.ImageOptions{
				Seed: uint64(70 + i), Layers: 6, LayerBytes: 300e3, Files: 4, Compression: harness.Uncompressed, Incompress: true,
			}
			if imgs[i], err = w.push(ctx, o); err != nil {
				return nil, err
			}
			if _, err := store.Push(ctx, imgs[i].Image, imgs[i].repo+":1"); err != nil {
				return nil, err
			}
		}
		w.registry.Disturb(func(r harness.Request) harness.Fault { return fault(r, store.Addr) })
		store.Disturb(func(r harness.Request) harness.Fault {
			if r.Range == "" {
				return harness.Fault{}
			}
			return harness.Fault{Status: http.StatusForbidden}
		})
		if _, err := w.seeder(ctx, "seeder", nil, imgs...); err != nil {
			return nil, err
		}
		n, err := w.node(ctx, "node", keys{"authorize": quote("blob")})
		if err != nil {
			return nil, err
		}
		vs := make([]value, len(imgs))
		for i, img := range imgs {
			if vs[i], err = w.insist(ctx, n, img.ref); err != nil {
				return nil, err
			}
		}
		return vs, nil
	}
}

// insist measures pulls until one succeeds, which is given up after some.
func (w *world) insist(ctx context.Context, n *harness.Node, ref string) (value, error) {
	made := 0
	v, err := w.measure(ctx, func(ctx context.Context) (err error) {
		for made < maxAttempts {
			made++
			if err = n.PullCRI(ctx, ref, nil); err == nil || ctx.Err() != nil {
				return err
			}
		}
		return errInsisted
	})
	v.Count = float64(made)
	if errors.Is(err, errInsisted) {
		v.Capped, err = true, nil
	}
	return v, err
}

// ownRegistry measures what any user of a node reads of a blob that only a seeder has, by
// naming a registry of his own.
func ownRegistry(ctx context.Context, w *world) ([]value, error) {
	if w.stock() {
		return make([]value, 2), nil // it has no shim
	}
	img, err := w.push(ctx, twenty(1))
	if err != nil {
		return nil, err
	}
	truth, err := img.layer(0)
	if err != nil {
		return nil, err
	}
	if _, err := w.seeder(ctx, "seeder", nil, img); err != nil {
		return nil, err
	}
	size := int64(len(truth))
	sends := false
	own, err := w.stranger(size, func(_ *stranger, rw http.ResponseWriter, r *http.Request) {
		if sends {
			sendFalsehood(rw, r, size)
		} else {
			rw.WriteHeader(http.StatusNotFound)
		}
	})
	if err != nil {
		return nil, err
	}
	vs := make([]value, 2)
	for i := range vs {
		sends = i == 1 // no request is under way
		k := shimKeys(own.addr)
		k["authorize"] = quote("blob")
		n, err := w.node(ctx, fmt.Sprintf("node-%d", i), k)
		if err != nil {
			return nil, err
		}
		var got []byte
		vs[i], err = w.measure(ctx, func(ctx context.Context) error {
			got, _ = get(ctx, n, own.addr, "own/blob", img.Layers[0]) // an error is what it should be
			return nil
		})
		if err != nil {
			return nil, err
		}
		vs[i].Count = float64(right(got, truth)) / 1e6
	}
	return vs, nil
}

// sendFalsehood answers for a blob of a size that has nothing else.
func sendFalsehood(w http.ResponseWriter, r *http.Request, size int64) {
	from, to := int64(0), size-1
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	} else {
		to = min(to, size-1)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, size))
		w.Header().Set("Content-Length", strconv.FormatInt(to-from+1, 10))
		w.WriteHeader(http.StatusPartialContent)
	}
	for left := to - from + 1; left > 0; {
		n, err := w.Write(falsehood[:min(left, int64(len(falsehood)))])
		if err != nil {
			return
		}
		left -= int64(n)
	}
}
