package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// room is a folder of the module with what it may import of the others.
type room struct {
	path string // its packages are path and all below it that are in no room of their own
	may  []string
	why  string
}

// rooms is the order of the module, from the bottom up: who stands above may import
// who stands below, where this says so. A room may import itself.
var rooms = []room{
	{"internal/sha256x2", nil, "leaf: hashing"},
	{"internal/durable", nil, "leaf: files that survive power cuts"},
	{"internal/diskfull", nil, "leaf: which errors are a full disk"},
	{"internal/errclass", nil, "leaf: errors over HTTP"},
	{"internal/rpcerr", nil, "leaf: gRPC's errors in words"},
	{"internal/httpclient", nil, "leaf: what clients of HTTP servers have in common"},
	{"internal/httpobject", []string{"internal/httpclient"}, "leaf: reading what HTTP servers have"},
	{"internal/keylock", nil, "leaf: locks"},
	{"internal/posheap", nil, "leaf: what waits for its time"},
	{"internal/reload", nil, "leaf: files that change"},
	{"internal/hostaddr", nil, "leaf: by which addresses a host is known"},
	{"internal/ociapi", nil, "leaf: OCI's distribution API"},
	{"swarm/piece", []string{"internal/sha256x2"}, "strangers' bytes are checked by the standard library and our SHA-256 alone"},
	{"swarm/wire", []string{"swarm/piece"}, "strangers' bytes are parsed by the standard library alone"},
	{"swarm", []string{"internal/hostaddr", "swarm/piece", "swarm/wire"}, "the data plane knows no registry, no containerd and no daemon"},
	{"internal/daemon", []string{"internal/durable", "internal/reload"}, "what every daemon has knows none of them"},
	{"fetcher", []string{"internal/daemon", "internal/diskfull", "internal/durable", "internal/httpclient", "internal/httpobject"},
		"storages know neither swarm nor daemons"},
	{"content", []string{"internal/diskfull", "internal/durable", "internal/keylock", "swarm/piece"}, "bytes on disk know no network"},
	{"control", []string{"internal/daemon", "internal/errclass", "internal/httpclient", "internal/posheap", "internal/rpcerr", "fetcher",
		"swarm/piece", "swarm/wire"},
		"APIs and their clients, no daemon"},
	{"trackerd/state", []string{"control", "internal/posheap", "swarm/piece"}, "a value: no socket, no clock"},
	{"origind/record", []string{"control", "fetcher", "internal/diskfull", "internal/durable", "swarm/piece"},
		"where blobs live, as members agree about it, on disk: no network"},
	{"origind/ringstate", []string{"control", "internal/posheap", "origind/record"}, "values: no socket, no disk, no clock"},
	{"internal/seeding", []string{"content", "control", "internal/daemon", "swarm", "swarm/piece", "swarm/wire"},
		"what agent and origin seed alike"},
	{"internal/image", []string{"control", "internal/daemon", "internal/httpclient", "swarm/piece"}, "the client side of images"},
	{"internal/backup", []string{"control", "fetcher", "internal/keylock"},
		"what a cluster keeps, out of it and back, through APIs and storages"},
	{"plugin/unpack", []string{"internal/diskfull", "internal/durable"}, "layers and trees, nothing of Capelin's"},
	{"plugin/shim", []string{"internal/daemon", "internal/httpclient", "internal/ociapi", "internal/reload", "swarm/piece"},
		"the node's registry API"},
	{"plugin/registries", nil, "a value: what downloads have shown of registries"},
	{"plugin/fetch", []string{"control", "plugin/registries", "swarm", "swarm/piece"},
		"what happens to a blob while containerd waits: no containerd, no registry, no disk"},
	{"plugin/fetch/fetchtest", []string{"content", "control", "plugin/fetch", "swarm", "swarm/piece"}, "what stands around it in tests"},
	{"plugin", []string{"content", "control", "internal/daemon", "internal/diskfull", "internal/durable", "internal/hostaddr",
		"internal/rpcerr", "internal/seeding", "plugin/fetch",
		"plugin/shim", "plugin/unpack",
		"swarm", "swarm/piece", "swarm/wire"}, "the node agent"},
	{"gateway", []string{"control", "internal/daemon", "internal/httpclient", "internal/ociapi", "internal/reload"},
		"reaches blobs and tags through APIs only"},
	{"origind", []string{"content", "control", "fetcher", "internal/daemon", "internal/diskfull", "internal/durable", "internal/hostaddr",
		"internal/keylock",
		"internal/seeding", "origind/record", "origind/ringstate",
		"swarm", "swarm/piece", "swarm/wire"}, "the origin"},
	{"indexd/replicate", []string{"control", "fetcher", "internal/daemon", "internal/httpclient", "internal/keylock", "internal/posheap"},
		"what an index brings to registries elsewhere"},
	{"indexd", []string{"control", "fetcher", "indexd/replicate", "internal/daemon"}, "the index"},
	{"trackerd", []string{"control", "internal/daemon", "internal/hostaddr", "swarm/piece", "trackerd/state"}, "the tracker"},
	{"cmd/capelin", []string{"control", "fetcher", "gateway", "indexd", "internal/backup", "internal/daemon", "internal/durable",
		"internal/image", "origind", "plugin", "plugin/shim", "swarm/wire", "trackerd"},
		"parses, wires a role, exits"},
	{"internal/sim", []string{"control", "plugin/fetch", "swarm", "swarm/piece", "swarm/wire", "trackerd/state"},
		"looks at every machine, and nobody looks at it"},
}

// strangers are the modules beyond the standard library that some rooms may use;
// rooms that are not named use what go.mod has.
var strangers = map[string][]string{
	"internal/sha256x2":        {"golang.org/x/sys"},
	"swarm/piece":              {"golang.org/x/sys"},
	"swarm/wire":               {"golang.org/x/sys"},
	"swarm":                    {"golang.org/x/sys", "github.com/hashicorp/golang-lru"},
	"origind/ringstate/mirror": {"github.com/opencontainers/go-digest"},
	"trackerd/state":           {"google.golang.org/grpc", "google.golang.org/protobuf", "golang.org/x", "google.golang.org/genproto"},
}

// Imports point down: a room that imports one above it, or one that it has no
// business with, is where a house begins to lean.
func TestImports(t *testing.T) {
	const module = "github.com/capelin-io/capelin/"
	roomOf := func(pkg string) string {
		best := ""
		for _, r := range rooms {
			if (pkg == r.path || strings.HasPrefix(pkg, r.path+"/")) && len(r.path) > len(best) {
				best = r.path
			}
		}
		return best
	}
	for i, r := range rooms {
		for _, below := range r.may {
			if !slices.ContainsFunc(rooms[:i], func(b room) bool { return b.path == below }) {
				t.Errorf("%s may import %s, which is not below it", r.path, below)
			}
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		imports := strings.Fields(line)
		pkg := strings.TrimPrefix(imports[0], module)
		name := roomOf(pkg)
		if name == "" {
			t.Errorf("%s is in no room: say in this test where it belongs, and what it may import", pkg)
			continue
		}
		r := rooms[slices.IndexFunc(rooms, func(r room) bool { return r.path == name })]
		seen[name] = true
		for _, imp := range imports[1:] {
			other, ours := strings.CutPrefix(imp, module)
			if to := roomOf(other); ours && to != name && !slices.Contains(r.may, to) {
				t.Errorf("%s imports %s; %s: %s", pkg, other, name, r.why)
			}
		}
	}
	for _, r := range rooms {
		if !seen[r.path] {
			t.Errorf("there is no package in the room %s", r.path)
		}
	}
	for name, allowed := range strangers {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}",
			module+name).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for _, dep := range strings.Fields(string(out)) {
			may := func(a string) bool { return dep == a || strings.HasPrefix(dep, a+"/") }
			if !strings.HasPrefix(dep, module) && !slices.ContainsFunc(allowed, may) {
				t.Errorf("%s depends on %s", name, dep)
			}
		}
	}
}
