package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/capelin-io/capelin/plugin"
)

// Types and names of containerd's plugins.
const (
	typeContent   = "io.containerd.content.v1"
	typeSnapshots = "io.containerd.snapshotter.v1"
	typeDiff      = "io.containerd.differ.v1"

	stockContent = typeContent + ".content" // its own content store
	proxyName    = "capelin"                // the agent, in the drop-in
)

// Effective is the part of containerd's configuration that matters here, with
// all imports.
type Effective struct {
	From         string   // who says so
	Root         string   // containerd's directory; "": its default
	Address      string   // its socket; "": its default
	Disabled     []string // plugins
	Proxies      map[string]Proxy
	Discard      bool   // discard_unpacked_layers
	MaxDownloads int    // layers of an image at once; 0: unknown
	Sharing      string // content_sharing_policy; "": the default, shared
	Unpacking    plugin.Unpacking
}

// Proxy is a plugin that another process serves.
type Proxy struct {
	Type    string `toml:"type"`
	Address string `toml:"address"`
}

// file is one of containerd's configuration files.
type file struct {
	Version  int              `toml:"version"`
	Root     string           `toml:"root"`
	Imports  []string         `toml:"imports"`
	Disabled []string         `toml:"disabled_plugins"`
	Proxies  map[string]Proxy `toml:"proxy_plugins"`
	GRPC     struct {
		Address string `toml:"address"`
	} `toml:"grpc"`
	Plugins map[string]any `toml:"plugins"`
}

// effective asks containerd itself, or else reads its files as it would.
func effective(ctx context.Context, h Host, binary, config string) (Effective, error) {
	if h.Live() && binary != "" {
		out, err := h.Run(ctx, binary, "--config", config, "config", "dump")
		if err == nil {
			var f file
			if err := toml.Unmarshal([]byte(out), &f); err == nil {
				e := Effective{From: "containerd config dump"}
				e.merge(&f)
				// Before 2.3 the dump does not migrate what a file of version 2 says.
				if ours, err := fromFiles(h, config, ""); err == nil {
					e.Discard = e.Discard || ours.Discard
					e.MaxDownloads = max(e.MaxDownloads, ours.MaxDownloads)
				}
				return e, nil
			}
		}
	}
	return fromFiles(h, config, "")
}

// fromFiles merges the files as containerd does, but for the one at except: breadth
// first, later ones win, disabled plugins add up. It does not read containerd's
// default imports, because containerd does not either.
func fromFiles(h Host, config, except string) (Effective, error) {
	e := Effective{From: config}
	seen := map[string]bool{except: true}
	pending := []string{config}
	for len(pending) > 0 {
		path := pending[0]
		pending = pending[1:]
		if seen[path] {
			continue
		}
		if seen[path] = true; len(seen) > 100 {
			return e, fmt.Errorf("%s imports more than 100 files", config)
		}
		f, err := readFile(h, path)
		if errors.Is(err, fs.ErrNotExist) && path == config {
			return Effective{From: "containerd's defaults, as there is no " + config}, nil
		}
		if err != nil {
			return e, err
		}
		e.merge(f)
		for _, pattern := range imports(path, f.Imports) {
			found := []string{pattern}
			if strings.Contains(pattern, "*") {
				if found, err = filepath.Glob(h.Path(pattern)); err != nil {
					return e, fmt.Errorf("%s: imports %q: %w", path, pattern, err)
				}
				for i := range found {
					found[i] = filepath.Join("/", strings.TrimPrefix(found[i], h.Path("/")))
				}
			}
			pending = append(pending, found...)
		}
	}
	return e, nil
}

// readFile reads one of containerd's files.
func readFile(h Host, path string) (*file, error) {
	data, err := read(h, path)
	if err != nil {
		return nil, fmt.Errorf("containerd's configuration: %w", err)
	}
	var f file
	if err := toml.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("containerd's configuration %s: %w", path, err)
	}
	return &f, nil
}

// imports returns a file's patterns as absolute paths.
func imports(path string, patterns []string) []string {
	all := make([]string, len(patterns))
	for i, p := range patterns {
		if all[i] = filepath.Clean(p); !filepath.IsAbs(p) {
			all[i] = filepath.Join(filepath.Dir(path), p)
		}
	}
	return all
}

func (e *Effective) merge(f *file) {
	if f.Root != "" {
		e.Root = f.Root
	}
	if f.GRPC.Address != "" {
		e.Address = f.GRPC.Address
	}
	for _, d := range f.Disabled {
		if !slices.Contains(e.Disabled, d) {
			e.Disabled = append(e.Disabled, d)
		}
	}
	if e.Proxies == nil {
		e.Proxies = map[string]Proxy{}
	}
	maps.Copy(e.Proxies, f.Proxies)
	get := func(keys ...string) any {
		var v any = f.Plugins
		for _, k := range keys {
			m, _ := v.(map[string]any)
			v = m[k]
		}
		return v
	}
	const cri2, cri3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
	if s, ok := get("io.containerd.server.v1.grpc", "address").(string); ok && s != "" {
		e.Address = s
	}
	for _, v := range []any{get(cri2, "containerd", "discard_unpacked_layers"), get(cri3, "discard_unpacked_layers")} {
		if b, ok := v.(bool); ok {
			e.Discard = b
		}
	}
	for _, v := range []any{get(cri2, "max_concurrent_downloads"), get(cri3, "max_concurrent_downloads")} {
		if n, ok := v.(int64); ok {
			e.MaxDownloads = int(n)
		}
	}
	if s, ok := get("io.containerd.metadata.v1.bolt", "content_sharing_policy").(string); ok {
		e.Sharing = s
	}
	// Whatever of it is not as it should be is for containerd to complain about.
	decodeInto(&e.Unpacking.Differs, get("io.containerd.service.v1.diff-service", "default"))
	decodeInto(&e.Unpacking.UnpackTo, get("io.containerd.transfer.v1.local", "unpack_config"))
}

// decodeInto decodes a value that was decoded to maps and slices; nil changes nothing.
func decodeInto[T any](to *T, v any) {
	if v == nil {
		return
	}
	var d struct{ V T }
	if text, err := toml.Marshal(map[string]any{"V": v}); err == nil && toml.Unmarshal(text, &d) == nil {
		*to = d.V
	}
}

// unpacking tells how containerd unpacks without what the file at dropIn says, and
// to which snapshotters it could.
func (s *Survey) unpacking(h Host, dropIn string) (plugin.Unpacking, error) {
	e, err := fromFiles(h, s.Config, dropIn)
	if err != nil {
		return plugin.Unpacking{}, err
	}
	u := e.Unpacking
	usable := func(kind string) (ids []string) {
		if s.Running != nil {
			for _, p := range s.Running.Plugins {
				if p.Type == kind && p.Err == "" {
					ids = append(ids, p.ID)
				}
			}
		}
		slices.Sort(ids)
		return ids
	}
	erofs := slices.Contains(usable(typeSnapshots), "erofs") && slices.Contains(usable(typeDiff), "erofs")
	if len(u.UnpackTo) == 0 { // containerd's defaults
		u.UnpackTo = []plugin.UnpackTo{{Platform: "linux", Snapshotter: "overlayfs"}}
		if erofs && atLeast(s.Version, 2, 3) {
			platform := "linux(+erofs)/" + runtime.GOARCH
			u.UnpackTo = append(u.UnpackTo, plugin.UnpackTo{Platform: platform, Snapshotter: "erofs", Differ: "erofs", Optional: true})
		}
	}
	// An entry for a snapshotter that cannot be used keeps a containerd before 2.3, which
	// does not know "optional", from pulling. Native can always be used.
	optional := atLeast(s.Version, 2, 3)
	for _, id := range usable(typeSnapshots) {
		named := slices.ContainsFunc(u.UnpackTo, func(t plugin.UnpackTo) bool { return t.Snapshotter == id })
		if id != "erofs" && (optional || id == "native") && !named {
			u.UnpackTo = append(u.UnpackTo, plugin.UnpackTo{Platform: "linux", Snapshotter: id, Optional: optional})
		}
	}
	return u, nil
}

// uses reports whether containerd takes the socket for its content store, and
// no other.
func (e *Effective) uses(socket string) bool {
	p := e.Proxies[proxyName]
	return p.Type == "content" && p.Address == socket && slices.Contains(e.Disabled, stockContent) && len(e.otherStores()) == 0
}

// otherStores returns the names of other content stores' proxies.
func (e *Effective) otherStores() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(e.Proxies)) {
		if e.Proxies[name].Type == "content" && name != proxyName && !slices.Contains(e.Disabled, typeContent+"."+name) {
			names = append(names, name)
		}
	}
	return names
}
