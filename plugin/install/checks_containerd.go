package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/capelin-io/capelin/plugin"
)

// checkConfiguration tells whether agent.toml can be used, and is.
func checkConfiguration(_ context.Context, p *patient, add report) {
	var runs plugin.ConfigurationStatus
	if p.running != nil {
		runs = p.running.Configuration
	}
	switch {
	case p.agent.Err != nil || len(runs.Refused) > 0:
		text, why := errText(p.agent.Err), "The agent does not start with it."
		if text == "" {
			text = strings.Join(runs.Refused, "\n")
		}
		switch {
		case runs.RegistryOnly != "":
			why = fmt.Sprintf("The agent runs with %s, and takes no part in the swarm: %s.", runs.Instead, runs.RegistryOnly)
		case runs.Instead != "":
			why = fmt.Sprintf("The agent runs with %s.", runs.Instead)
		}
		add(Fail, text, why, "Correct it, and try it with \"capelin agent check\"; \"capelin agent config\" prints every key. "+
			"What follows is about what of it can be read.")
	case len(runs.Restart) > 0:
		add(Warn, fmt.Sprintf("%s has changed: %s", p.agent.file(), strings.Join(runs.Restart, ", ")),
			"The agent still runs with what it was started with.", "systemctl restart "+agentUnit)
	case p.agent.Path == "":
		add(Warn, "there is no "+ConfigPath+", and the agent runs on defaults",
			"The defaults name no tracker and listen on loopback.", "capelin agent install, or capelin agent config > "+ConfigPath)
	default:
		add(OK, p.agent.Path, "", "")
	}
}

// checkObstacles tells what the running agent does without.
func checkObstacles(_ context.Context, p *patient, add report) {
	if p.running == nil {
		return // checkSocket tells of one that does not answer
	}
	for _, o := range p.running.Obstacles {
		why, do := "Without it this part of the agent does not run.", "Correct it. The agent tries again by itself."
		switch o.Key {
		case "configuration": // as checkConfiguration says
			continue
		case "listen", "identity":
			why = "Without it the node takes no part in the swarm, and pulls from the registry."
		case "metrics":
			why = "Nobody sees the agent's metrics and health."
		case "shim", "shim.listen":
			why = "Clients that pull through the registry shim, such as Docker, cannot."
		}
		if o.Key == "listen" || o.Key == "metrics" || o.Key == "shim.listen" {
			do = "See who has the port with \"ss -ltnp\", or set " + o.Key + " in " + p.agent.file() + " to another. " +
				"The agent tries again by itself."
		}
		add(Fail, o.Key+": "+o.Error, why, do)
	}
}

// checkName tells what the running agent knows of its name.
func checkName(_ context.Context, p *patient, add report) {
	if p.running != nil && p.running.Namesake != "" {
		add(Fail, fmt.Sprintf("%s: %v", p.running.Node, p.running.Namesake),
			"Each of the two takes the other's place at the trackers, again and again: neither is found, and neither finds others for long.",
			"Set node in "+p.agent.file()+" of one of them, or give it a hostname, and with an identity a certificate, of its own.")
	}
}

// checkFallback looks for the marker.
func checkFallback(_ context.Context, p *patient, add report) {
	m := Marker(p)
	if m == "" {
		add(OK, "this node has not fallen back", "", "")
		return
	}
	do := "When the agent works again the node comes back by itself, and \"capelin agent fallback --undo\" tries it at once."
	if strings.HasSuffix(m, stays) {
		do = "Mend that, then \"capelin agent fallback --undo\"."
	}
	add(Fail, "this node fell back to containerd's own content store: "+strings.ReplaceAll(m, "\n", "; "),
		"Images are there and containers start, but pulls come from the registry.",
		fmt.Sprintf("\"journalctl -u %s\" says more. %s", agentUnit, do))
}

// checkContainerd looks at what runs.
func checkContainerd(_ context.Context, p *patient, add report) {
	if p.survey == nil {
		add(Fail, p.err.Error(), "containerd would not start with that, and nothing can be said about it.", "Correct its configuration.")
		return
	}
	s := p.survey
	what := s.Flavor
	if s.Version != "" {
		what += " " + s.Version
	}
	switch {
	case s.Version == "":
		add(Warn, fmt.Sprintf("%s, of an unknown version", s.Flavor),
			"It must be 2.1 or newer.", "Check that it is installed and running: "+errText(s.NotRunning))
	case !atLeast(s.Version, 2, 1):
		add(Fail, what, "The agent is made for the content store API of containerd 2.1 and newer.", "Update containerd.")
	case s.Running == nil:
		add(Fail, what+" does not answer: "+errText(s.NotRunning),
			"Without it nothing is pulled and nothing starts.", fmt.Sprintf("systemctl status %s; journalctl -u %s", s.Unit, s.Unit))
	default:
		add(OK, what, "", "")
	}
	if s.Template != "" && exists(p, s.Template) {
		text, err := read(p, s.Template)
		if err == nil && !strings.Contains(string(text), `template "base"`) && !strings.Contains(string(text), proxyName) {
			add(Warn, s.Template+" replaces "+s.Flavor+"'s own template",
				"Drop-ins are imported only if it says so.", fmt.Sprintf("Add imports = [%q] to it.", s.DropIns+"/*.toml"))
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// checkDropIn looks at the file, and whether containerd would load it.
func checkDropIn(_ context.Context, p *patient, add report) {
	if p.survey == nil {
		return
	}
	s, path := p.survey, p.receipt.DropIn
	const why = "containerd keeps its own content store, and the swarm is of no use."
	text, err := read(p, path)
	switch {
	case errors.Is(err, os.ErrNotExist) && s.Effective.uses(p.agent.Socket): // somewhere else
		add(OK, "in "+s.Effective.From, "", "")
		return
	case errors.Is(err, os.ErrNotExist) && exists(p, path+disabledSuffix):
		add(Fail, path+" was moved aside to "+path+disabledSuffix, why, "capelin agent fallback --undo")
		return
	case errors.Is(err, os.ErrNotExist):
		add(Fail, "there is none at "+path, why, "capelin agent install")
		return
	case err != nil:
		add(Fail, err.Error(), why, "")
		return
	}
	if proxy := s.Effective.Proxies[proxyName]; proxy.Address == "" {
		if s.Template == path {
			add(Fail, s.Config+" has not been made of the template "+path+" yet", why, "systemctl restart "+agentUnit+" "+s.Unit)
			return
		}
		add(Fail, fmt.Sprintf("%s does not import %s", s.Config, path),
			"containerd reads only the drop-ins that its main file names in \"imports\", whatever \"containerd config default\" prints.",
			fmt.Sprintf("Put imports = [%q] at the top of %s, and restart containerd.", filepath.Join(filepath.Dir(path), "*.toml"), s.Config))
		return
	}
	u, err := s.unpacking(p, path)
	if err != nil {
		add(Fail, err.Error(), "containerd cannot read it either.", "")
		return
	}
	if p.agent.Err == nil && !strings.HasSuffix(path, ".tmpl") && string(text) != plugin.ContainerdConfig(p.agent.Config, u) {
		add(Warn, fmt.Sprintf("%s is not what %s would have", path, p.agent.file()),
			"The agent's socket, or whether it unpacks, may be another than containerd thinks; or there are "+
				"snapshotters to which it does not unpack yet; or somebody has merged more into it.",
			"See what would change: capelin agent install --dry-run")
		return
	}
	add(OK, fmt.Sprintf("%s, found by %s", path, s.Effective.From), "", "")
}

// checkStores looks at content stores: there must be one, and it must be ours.
func checkStores(_ context.Context, p *patient, add report) {
	if p.survey == nil {
		return
	}
	e := &p.survey.Effective
	if proxy, ours := e.Proxies[proxyName]; ours {
		switch {
		case proxy.Type != "content":
			add(Fail, fmt.Sprintf("the proxy plugin %s is of type %q", proxyName, proxy.Type),
				"containerd does not take it for a content store.", "Write the drop-in again: capelin agent install")
		case proxy.Address != p.agent.Socket:
			add(Fail, fmt.Sprintf("containerd looks for the agent on %s, the agent is on %s", proxy.Address, p.agent.Socket),
				"containerd would wait for it for ever.", "Make the drop-in and socket in "+p.agent.file()+" agree.")
		case !slices.Contains(e.Disabled, stockContent):
			add(Fail, stockContent+" is not disabled",
				"containerd accepts one content store only, and does not start with two.",
				"Write the drop-in again: capelin agent install")
		}
	}
	for _, other := range e.otherStores() {
		add(Fail, "the proxy plugin "+other+" is a content store, too",
			"containerd accepts one content store only, and does not start with two.", "Remove one of the two.")
	}
	if p.survey.Running == nil {
		return
	}
	var have []string
	for _, pl := range p.survey.Running.Plugins {
		switch {
		case pl.Type != typeContent || strings.Contains(pl.Err, "skip plugin"):
		case pl.Err != "":
			add(Fail, fmt.Sprintf("the running containerd could not load its content store %s: %s", pl.ID, pl.Err),
				"Nothing can be pulled or started.", "journalctl -u "+p.survey.Unit)
		default:
			have = append(have, pl.ID)
		}
	}
	switch _, configured := e.Proxies[proxyName]; {
	case slices.Equal(have, []string{proxyName}):
		add(OK, "the running containerd uses the agent", "", "")
	case configured && len(have) > 0:
		add(Fail, fmt.Sprintf("the running containerd uses %s", strings.Join(have, ", ")),
			"It was started before the drop-in was there.", "systemctl restart "+agentUnit+" "+p.survey.Unit)
	case len(have) > 0:
		add(Warn, fmt.Sprintf("the running containerd uses %s", strings.Join(have, ", ")), "The swarm is of no use to it.", "See drop-in.")
	}
}

// checkUnits looks at systemd's units.
func checkUnits(ctx context.Context, p *patient, add report) {
	if p.survey == nil || !p.survey.SystemdRuns {
		add(OK, "systemd does not run here: whatever starts the agent must do so before containerd", "", "")
		return
	}
	fallen := Marker(p) != ""
	bad := false
	for _, unit := range []string{socketUnit, agentUnit, fallbackUnit, returnUnit} {
		st, err := unitState(ctx, p, unit)
		switch {
		case err != nil:
			bad = true
			add(Warn, err.Error(), "Nothing is known about the unit.", "")
		case st["LoadState"] != "loaded" && unit == fallbackUnit:
			bad = true
			add(Warn, unit+" is not installed",
				"If the agent cannot run, no container starts until somebody comes.", "capelin agent install --start")
		case st["LoadState"] != "loaded" && unit == returnUnit:
			bad = true
			add(Warn, unit+" is not installed",
				"If the node falls back, it does not come back by itself.", "capelin agent install --start")
		case st["LoadState"] != "loaded":
			bad = true
			add(Fail, unit+" is not installed", "The agent does not run when the node starts.", "capelin agent install --start")
		case unit == fallbackUnit || unit == returnUnit:
		case st["UnitFileState"] != "enabled":
			bad = true
			add(Fail, unit+" is not enabled",
				"After the next boot containerd waits for an agent that nobody starts.", "systemctl enable "+socketUnit+" "+agentUnit)
		case st["ActiveState"] != "active" && !fallen:
			bad = true
			add(Fail, fmt.Sprintf("%s is %s (%s)", unit, st["ActiveState"], st["Result"]),
				"containerd cannot reach its content store.", "journalctl -u "+unit)
		}
	}
	if !bad {
		add(OK, "installed and enabled", "", "")
	}
	if p.agent.Unpack && !exists(p, filepath.Join(UnitDir, unpackConf)) {
		add(Fail, "unpack = true, but "+filepath.Join(UnitDir, unpackConf)+" is not there",
			"The agent's unit hides directories into which it unpacks.", "capelin agent install --start")
	}
}

// checkSocket asks the agent how it is.
func checkSocket(ctx context.Context, p *patient, add report) {
	if Marker(p) != "" {
		return // nobody is there, and nobody should be
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := p.Healthy(ctx, p.agent.Socket); err != nil {
		add(Fail, fmt.Sprintf("the agent does not answer on %s: %v", p.agent.Socket, err),
			"containerd waits for it at every pull and every container start.",
			fmt.Sprintf("systemctl status %s; journalctl -u %s", agentUnit, agentUnit))
		return
	}
	add(OK, "the agent answers on "+p.agent.Socket, "", "")
}

// checkLayers looks at what containerd does with layers.
func checkLayers(_ context.Context, p *patient, add report) {
	if p.survey == nil {
		return
	}
	e := &p.survey.Effective
	if e.Discard && p.agent.Cache.Size <= 0 {
		add(Warn, "discard_unpacked_layers is true, and cache.size is 0 or less",
			"containerd deletes each layer as soon as it is unpacked, so that this node seeds nothing.",
			"Give the cache a size, such as cache.size = \"32GiB\", or set discard_unpacked_layers = false.")
	} else if e.Discard {
		add(OK, fmt.Sprintf("discard_unpacked_layers is true: this node seeds what is in its cache of %v", p.agent.Cache.Size), "", "")
	}
	if e.MaxDownloads > 3 {
		add(Warn, fmt.Sprintf("max_concurrent_downloads is %d", e.MaxDownloads),
			"A node may hold 3 upstream leases that it has not begun to use (lease.max_unstarted of the trackers): "+
				"with more downloads at once the others wait, or come from the registry more than once.",
			fmt.Sprintf("Set lease.max_unstarted = %d on the trackers.", e.MaxDownloads))
	}
}

// checkAuthorize looks whether both sides mean the same.
func checkAuthorize(_ context.Context, p *patient, add report) {
	if p.survey != nil && p.survey.Effective.Sharing == "isolated" && p.agent.Authorize != "blob" {
		add(Warn, "content_sharing_policy is \"isolated\", and authorize is \""+p.agent.Authorize+"\"",
			"containerd's namespaces do not share blobs, but the swarm gives them to whoever can name them.",
			fmt.Sprintf("Set authorize = \"blob\" in %s.", p.agent.file()))
	}
}
