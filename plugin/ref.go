package plugin

import (
	"strings"

	"github.com/capelin-io/capelin/swarm/piece"
)

// parseRef returns the blob that an ingest reference names if it belongs to the
// swarm: "<namespace>/<number>/<kind>-[<name>@]<digest>" with a known size, where
// the part after the second slash is what containerd's remotes.MakeRefKey makes
// for a layer, a config, an attestation or a type it does not know. Everything
// else (manifests and indexes, imports, conversions, builds) is not ours.
func parseRef(ref string, total int64) (id piece.ID, ok bool) {
	ns, rest, ok := strings.Cut(ref, "/")
	if !ok || ns == "" {
		return id, false
	}
	seq, key, ok := strings.Cut(rest, "/")
	if !ok || !digits(seq) {
		return id, false
	}
	kind, key, ok := strings.Cut(key, "-")
	if !ok {
		return id, false
	}
	switch kind {
	case "layer", "config", "unknown", "attestation":
	default:
		return id, false
	}
	if i := strings.LastIndexByte(key, '@'); i >= 0 {
		key = key[i+1:]
	}
	id, err := piece.ParseID(key, total)
	return id, err == nil
}

// isManifestRef reports whether containerd fetches a manifest or an index under
// the reference.
func isManifestRef(ref string) bool {
	_, rest, ok := strings.Cut(ref, "/")
	if !ok {
		return false
	}
	seq, key, ok := strings.Cut(rest, "/")
	return ok && digits(seq) && (strings.HasPrefix(key, "manifest-") || strings.HasPrefix(key, "index-"))
}

func digits(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
