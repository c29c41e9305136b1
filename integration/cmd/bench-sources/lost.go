package main

import (
	"context"
	"errors"
)

// Item 4: the only source is lost in the middle of a pull.
var lost = []scenario{
	{"4", "seeder is unplugged", []row{
		{Name: "after 46 of 172 MiB, two nodes", Unit: "× what was missing", goal: count(1.15, "× what was missing")},
	}, unplugged},
}

func unplugged(ctx context.Context, w *world) ([]value, error) {
	img, nodes, seeder, err := w.threeLayers(ctx)
	if err != nil {
		return nil, err
	}
	missing := img.Bytes()
	v, err := w.measure(ctx, func(ctx context.Context) error {
		ended := make(chan struct{})
		var pulled error
		go func() {
			defer close(ended)
			pulled = together(ctx, nodes, img.ref)
		}()
		if seeder != nil {
			// The seeder gives no piece twice before all are out.
			err := until(ctx, ended, func() (bool, error) {
				st, err := seeder.Status(ctx)
				missing = img.Bytes() - st.Bytes.ToPeers
				return st.Bytes.ToPeers >= 46<<20, err
			})
			if err := errors.Join(err, w.SetLink(seeder.Host, false)); err != nil {
				return err
			}
		}
		<-ended
		return pulled
	})
	v.Count = float64(v.Registry) / float64(missing)
	return []value{v}, err
}
