package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/tracker"
	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/swarm"
)

// Status is what "capelin status" shows, as the admin socket serves it at
// /status. Sizes are in bytes.
type Status struct {
	Version   string    `json:"version"`
	Node      string    `json:"node"`
	Cluster   string    `json:"cluster"`
	Zone      string    `json:"zone,omitempty"`
	Advertise string    `json:"advertise"`         // where peers connect
	Swarm     string    `json:"swarm,omitempty"`   // why the node takes no part in the swarm; empty: it does
	Metrics   string    `json:"metrics,omitempty"` // where /metrics is
	Shim      string    `json:"shim,omitempty"`    // where the registry API for other clients is
	Started   time.Time `json:"started"`
	Stopping  bool      `json:"stopping,omitempty"`
	Root      string    `json:"root"`
	Socket    string    `json:"socket"`
	Authorize string    `json:"authorize"`

	// Configuration is the file that the agent was started with.
	Configuration ConfigurationStatus `json:"configuration"`
	// Obstacles keep parts of the agent from running: until they are gone, which the agent
	// looks for by itself, the rest runs without.
	Obstacles []ObstacleStatus `json:"obstacles,omitempty"`
	// Namesake is where another machine is that has this node's name.
	Namesake tracker.Namesake `json:"namesake,omitempty"`

	Store    StoreStatus     `json:"store"`
	Bytes    BytesStatus     `json:"bytes"`
	Trackers []TrackerStatus `json:"trackers"`
	Peers    []PeerStatus    `json:"peers"`
	// Unreachable are peers that were named as sources, and deliver nothing.
	Unreachable []UnreachableStatus `json:"unreachable,omitempty"`
	Blobs       []BlobStatus        `json:"blobs"` // in flight, and swarms taken part in
}

// ConfigurationStatus says whether the agent runs with its file as that is now.
type ConfigurationStatus struct {
	File    string    `json:"file,omitempty"`
	Refused []string  `json:"refused,omitempty"` // why it does not
	Since   time.Time `json:"since,omitzero"`
	Instead string    `json:"instead,omitempty"` // what it runs with instead
	// RegistryOnly is why the node takes no part in the swarm, as long as the file is refused.
	RegistryOnly string   `json:"registry_only,omitempty"`
	Restart      []string `json:"restart,omitempty"` // keys that have changed, and need a restart
}

// ObstacleStatus is one thing that keeps a part of the agent from running.
type ObstacleStatus struct {
	Key   string    `json:"key"` // of the configuration
	Error string    `json:"error"`
	Since time.Time `json:"since"`
}

// StoreStatus counts complete blobs.
type StoreStatus struct {
	Committed  int   `json:"committed"` // containerd's
	Cached     int   `json:"cached"`
	CacheBytes int64 `json:"cache_bytes"` // unfinished ones included
}

// BytesStatus counts since the agent started, by source.
type BytesStatus struct {
	FromPeers      int64 `json:"from_peers"` // verified and stored
	FromRegistry   int64 `json:"from_registry"`
	ToPeers        int64 `json:"to_peers"`
	FromOtherZones int64 `json:"from_other_zones"` // received from peers, verified or not
	ToOtherZones   int64 `json:"to_other_zones"`
}

// TrackerStatus is one tracker.
type TrackerStatus struct {
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"` // the last one, if not connected; or that it is, and hangs
}

// PeerStatus is one connection.
type PeerStatus struct {
	Node     string    `json:"node"`
	Zone     string    `json:"zone,omitempty"`
	Address  string    `json:"address"`
	Accepts  string    `json:"accepts,omitempty"` // where it takes connections
	Inbound  bool      `json:"inbound"`
	Since    time.Time `json:"since"`
	BytesIn  int64     `json:"bytes_in"`
	BytesOut int64     `json:"bytes_out"`
}

// UnreachableStatus is a peer that has failed as a source.
type UnreachableStatus struct {
	Node    string    `json:"node"`
	Address string    `json:"address"`
	Reason  string    `json:"reason"` // refused, no_route, timeout, closed, handshake, silent, other
	Error   string    `json:"error,omitempty"`
	Since   time.Time `json:"since"`
	Next    time.Time `json:"next"` // it is not tried again before
	Fails   int       `json:"fails"`
}

// BlobStatus is one blob in flight or in a swarm.
type BlobStatus struct {
	Digest   string `json:"digest"`
	Size     int64  `json:"size"`
	Verified int64  `json:"verified"`
	// State is "waiting" (containerd waits for the swarm), "writing" (containerd
	// downloads it), "prefetch" (ahead of containerd), or "seeding".
	State        string    `json:"state"`
	Lease        bool      `json:"lease,omitempty"` // this node downloads it for the cluster
	Verdict      string    `json:"verdict,omitempty"`
	Peers        int       `json:"peers"`
	FromPeers    int64     `json:"from_peers"`
	FromRegistry int64     `json:"from_registry"`
	ToPeers      int64     `json:"to_peers"`
	Since        time.Time `json:"since,omitzero"`
}

func (a *agent) status() Status {
	var n swarm.NodeStatus
	advertise := ""
	if net := a.network.Load(); net != nil {
		n, advertise = net.node.Snapshot(), net.advertise
	}
	u := a.disk.Usage()
	st := Status{
		Version: version.Version(), Node: a.name, Cluster: a.cfg.Cluster, Zone: a.cfg.Zone,
		Advertise: advertise, Metrics: a.daemon.PageAddr(), Started: a.started, Stopping: a.stopping.Load(),
		Root: a.cfg.Root, Socket: a.cfg.Socket, Authorize: a.cfg.Authorize,
		Store: StoreStatus{Committed: u.Committed, Cached: u.Cached, CacheBytes: u.CacheBytes},
		Bytes: BytesStatus{
			FromPeers: n.Total.Stored, FromRegistry: a.registryBytes.Load(), ToPeers: n.Total.BytesOut,
			FromOtherZones: n.Total.FarIn, ToOtherZones: n.Total.FarOut,
		},
		Peers: []PeerStatus{}, Blobs: []BlobStatus{},
	}
	st.Trackers, st.Namesake = a.trackerStatus()
	st.Swarm = a.outside()
	st.Configuration = a.configuration()
	st.Shim, _ = a.shimAddr.Load().(string)
	for _, o := range a.daemon.Obstacles() {
		st.Obstacles = append(st.Obstacles, ObstacleStatus{o.Key, o.Text, o.Since})
	}
	for _, c := range n.Conns {
		st.Peers = append(st.Peers, PeerStatus{
			Node: c.Peer.Node, Zone: c.Peer.Zone, Address: c.Remote, Accepts: c.Peer.Addr, Inbound: c.Inbound,
			Since: c.Since, BytesIn: c.BytesIn, BytesOut: c.BytesOut,
		})
	}
	if net := a.network.Load(); net != nil {
		for _, u := range net.node.Unreachable() {
			is := UnreachableStatus{Node: u.Node, Address: u.Addr, Reason: string(u.Reason), Since: u.Since, Next: u.Next, Fails: u.Fails}
			if u.Err != nil {
				is.Error = u.Err.Error()
			}
			st.Unreachable = append(st.Unreachable, is)
		}
	}
	inFlight := map[string]bool{}
	for _, f := range a.fetches.Status() {
		var in swarm.BlobStatus
		if net := a.network.Load(); net != nil {
			in, _ = net.node.Status(f.ID)
		}
		b := BlobStatus{
			Digest: f.ID.Digest(), Size: f.ID.Size, Verified: f.Verified, Lease: f.Lease, Verdict: f.Verdict.String(),
			Peers: in.Peers, FromPeers: in.BytesIn, FromRegistry: f.Registry, ToPeers: in.BytesOut, Since: f.Started,
		}
		switch {
		case f.Waiting > 0:
			b.State = "waiting"
		case f.Sessions == 0:
			b.State = "prefetch"
		default:
			b.State = "writing"
		}
		inFlight[b.Digest] = true
		st.Blobs = append(st.Blobs, b)
	}
	for _, j := range n.Blobs {
		if d := j.ID.Digest(); !inFlight[d] {
			st.Blobs = append(st.Blobs, BlobStatus{
				Digest: d, Size: j.ID.Size, Verified: min(int64(j.Have)*j.ID.Length(), j.ID.Size), State: "seeding",
				Peers: j.Peers, FromPeers: j.BytesIn, ToPeers: j.BytesOut,
			})
		}
	}
	return st
}

// outside returns why the node takes no part in the swarm, or "".
func (a *agent) outside() string {
	if a.network.Load() != nil {
		return ""
	}
	if a.cfg.Alone != "" {
		return a.cfg.Alone
	}
	for _, o := range a.daemon.Obstacles() {
		if o.Key == "listen" || o.Key == "identity" {
			return o.Text
		}
	}
	return "it is about to begin"
}

func (a *agent) configuration() ConfigurationStatus {
	st := ConfigurationStatus{RegistryOnly: a.cfg.Alone}
	if f := a.cfg.File; f != nil {
		is := f.State()
		st.File, st.Since, st.Instead, st.Restart = f.Path, is.Since, is.Instead, is.Restart
		if is.Refused != nil {
			st.Refused = strings.Split(is.Refused.Error(), "\n")
		}
	}
	return st
}

// adminHandler serves the admin socket.
func (a *agent) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a.status()); err != nil {
			log.G(r.Context()).WithError(err).Debug("cannot send the status")
		}
	})
	return mux
}

// FetchStatus asks the agent behind an admin socket.
func FetchStatus(ctx context.Context, admin string) (Status, error) {
	c := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", admin)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return Status{}, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("asking the agent on %s (is it running?): %w", admin, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("asking the agent on %s: %s", admin, resp.Status)
	}
	var st Status
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return Status{}, fmt.Errorf("asking the agent on %s: %w", admin, err)
	}
	return st, nil
}
