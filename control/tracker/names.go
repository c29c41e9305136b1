package tracker

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
)

// resolve returns the names of trackers, those behind dns+ names included, ordered,
// and why some are missing.
func resolve(ctx context.Context, trackers []string, lookup func(context.Context, string) ([]string, error)) ([]string, error) {
	var names []string
	var errs []error
	for _, t := range trackers {
		name, ok := strings.CutPrefix(t, "dns+")
		if !ok {
			names = append(names, t)
			continue
		}
		found, err := lookupTracker(ctx, name, lookup)
		names = append(names, found...)
		errs = append(errs, err)
	}
	slices.Sort(names)
	return slices.Compact(names), errors.Join(errs...)
}

// lookupTracker returns host:port for each address of a name.
func lookupTracker(ctx context.Context, name string, lookup func(context.Context, string) ([]string, error)) ([]string, error) {
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := lookup(ctx, host)
	names := make([]string, len(addrs))
	for i, a := range addrs {
		names[i] = net.JoinHostPort(a, port)
	}
	return names, err
}
