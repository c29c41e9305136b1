package install

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// kubeletDir is kubelet's, with the configuration that kubeadm writes.
const kubeletDir = "/var/lib/kubelet"

// kubeletConfig is what kubelet's configuration says of the disk, with kubelet's defaults.
type kubeletConfig struct {
	High     int               `yaml:"imageGCHighThresholdPercent"`
	Hard     map[string]string `yaml:"evictionHard"`
	Soft     map[string]string `yaml:"evictionSoft"`
	Reclaim  map[string]string `yaml:"evictionMinimumReclaim"`
	Defaults bool              `yaml:"mergeDefaultEvictionSettings"`
}

// A demand is how much of the image file system kubelet wants free, and what it does until
// it is.
type demand struct {
	free    float64
	does    string // with what is wanted, such as "evicts below 15%"
	costs   string
	setting string
}

// demands returns the most that kubelet wants free of a disk of that size on which images
// are; pods are on it, too, if shared. ok is false if it wants nothing.
func demands(h Host, size int64, shared bool) (d demand, ok bool) {
	c := kubeletConfig{High: 85}
	data, err := read(h, kubeletDir+"/config.yaml")
	if err == nil {
		_ = yaml.Unmarshal(data, &c) // kubelet says what is wrong with it
	}
	defaults := map[string]string{"imagefs.available": "15%", "nodefs.available": "10%"}
	if c.Hard == nil {
		c.Hard = defaults
	} else if c.Defaults {
		for signal, v := range defaults {
			if _, ok := c.Hard[signal]; !ok {
				c.Hard[signal] = v
			}
		}
	}
	add := func(x demand) {
		if x.free > d.free {
			d = x
		}
	}
	signals := []string{"imagefs.available"}
	if shared {
		signals = append(signals, "nodefs.available")
	}
	for _, signal := range signals {
		for _, t := range []struct {
			setting string
			values  map[string]string
		}{{"evictionHard", c.Hard}, {"evictionSoft", c.Soft}} {
			free := share(t.values[signal], size)
			if free == 0 {
				continue
			}
			x := demand{free: free, costs: "kubelet removes images and evicts pods.", setting: t.setting + ", " + signal}
			x.does = fmt.Sprintf("evicts below %.0f%%", 100*free)
			if more := share(c.Reclaim[signal], size); more > 0 {
				x.free += more
				x.does += fmt.Sprintf(" until %.0f%% are free", 100*x.free)
			}
			add(x)
		}
	}
	if c.High > 0 && c.High < 100 { // 100: never
		free := float64(100-c.High) / 100
		add(demand{free: free, does: fmt.Sprintf("removes images below %.0f%%", 100*free),
			costs: "kubelet removes images that no container uses.", setting: "imageGCHighThresholdPercent"})
	}
	return d, d.free > 0
}

// share returns a threshold of kubelet's as a fraction of a disk.
func share(value string, size int64) float64 {
	value = strings.TrimSpace(value)
	if percent, ok := strings.CutSuffix(value, "%"); ok {
		f, err := strconv.ParseFloat(percent, 64)
		if err != nil || f < 0 {
			return 0
		}
		return f / 100
	}
	// Kubernetes' quantities: 10Gi is our 10GiB.
	unit := ""
	if strings.HasSuffix(value, "i") {
		unit = "B"
	}
	var n config.Bytes
	if size <= 0 || n.UnmarshalText([]byte(value+unit)) != nil || n < 0 {
		return 0
	}
	return float64(n) / float64(size)
}
