package install

import (
	"embed"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/plugin"
)

// Paths of an installation.
const (
	ConfigPath = "/etc/capelin/agent.toml"
	BinaryPath = "/usr/local/bin/capelin"
	UnitDir    = "/etc/systemd/system"
	StateDir   = "/var/lib/capelin"
	MarkerPath = StateDir + "/fallback"     // exists: containerd is on its stock store
	receipt    = StateDir + "/install.json" // what was written
	// When the node came back by itself last.
	returnedPath = StateDir + "/returned"
	kept         = "capelin/agent" // below /var/lib: what the agent keeps between its starts

	// In memory: they do not outlive the machine.
	runDir       = "/run/capelin-fallback"
	trialPath    = runDir + "/trial"                // exists: the units start although there is a marker
	lockPath     = runDir + "/lock"                 // held by who falls back or comes back
	attemptsPath = "/run/capelin-agent/starts.json" // how often the agent did not come up
)

// Names of the units.
const (
	agentUnit    = "capelin-agent.service"
	socketUnit   = "capelin-agent.socket"
	fallbackUnit = "capelin-agent-fallback.service"
	returnUnit   = "capelin-agent-return.service"
	unpackConf   = agentUnit + ".d/unpack.conf"
)

//go:embed units
var unitFiles embed.FS

var unitTemplates = template.Must(template.ParseFS(unitFiles, "units/*"))

// keptState is what the agent keeps, below systemd's StateDirectory.
var keptState = daemon.Kept{Dir: "/var/lib/" + kept, Name: "agent"}

// unitValues are what differs between installations.
type unitValues struct {
	Binary, Config   string // the agent's program and configuration
	Socket, Admin    string // Admin may be empty
	Unit             string // that runs containerd
	DropIn           string
	Marker, StateDir string
	Kept, Trial      string
	GaveUp           int // the agent's status if there is no use in starting it again
}

// GaveUp is the status of an agent that is not to be started again.
const GaveUp = 78

// Units returns the units of an agent and the drop-in of its unit, by their paths
// below systemd's directory. unit runs containerd, which finds the agent by the
// file dropIn.
func Units(cfg plugin.Config, binary, config, unit, dropIn string) map[string]string {
	v := unitValues{
		Binary: binary, Config: config, Socket: cfg.Socket, Admin: cfg.Admin,
		Unit: unit, DropIn: dropIn, Marker: MarkerPath, StateDir: StateDir, Kept: kept, Trial: trialPath, GaveUp: GaveUp,
	}
	files := map[string]string{}
	names := map[string]string{agentUnit: agentUnit, socketUnit: socketUnit, fallbackUnit: fallbackUnit, returnUnit: returnUnit}
	if cfg.Unpack {
		names["capelin-agent-unpack.conf"] = unpackConf
	}
	for from, to := range names {
		var b strings.Builder
		if err := unitTemplates.ExecuteTemplate(&b, from, v); err != nil {
			panic(err) // the templates are ours, and tested
		}
		files[filepath.Join(UnitDir, to)] = b.String()
	}
	return files
}

// dropIn returns the drop-in's text in a form.
func dropIn(cfg plugin.Config, u plugin.Unpacking, form Form) string {
	text := plugin.ContainerdConfig(cfg, u)
	if form != FormTemplate {
		return text
	}
	// The base has a version, and tables: plain keys go before it, tables after.
	keys, tables, _ := strings.Cut(text, "\n[")
	keys = strings.Replace(keys, "version = 3\n", "", 1)
	return templateHead + keys + "\n{{ template \"base\" . }}\n\n[" + tables
}

const templateHead = `{{- /* Written by "capelin agent install": what the node makes of this is containerd's configuration. */ -}}
`
