package install

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/capelin-io/capelin/internal/durable"
)

// Receipt is what an installation wrote, kept in /var/lib/capelin.
type Receipt struct {
	Version string            `json:"version"` // of Capelin
	Time    time.Time         `json:"time"`
	Flavor  string            `json:"flavor"`
	Unit    string            `json:"unit"`   // runs containerd
	Main    string            `json:"main"`   // containerd's main configuration file
	Config  string            `json:"config"` // the agent's configuration
	DropIn  string            `json:"drop_in"`
	Edited  string            `json:"edited,omitempty"` // containerd's file that got a line of ours
	Line    string            `json:"line,omitempty"`   // that line; the whole file, if there was none
	Files   map[string]string `json:"files"`            // paths to SHA-256 in hex
}

// LoadReceipt reads the receipt; without an installation the error is
// os.ErrNotExist.
func LoadReceipt(h Host) (*Receipt, error) {
	data, err := read(h, receipt)
	if err != nil {
		return nil, fmt.Errorf("the record of the installation: %w", err)
	}
	var r Receipt
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("the record of the installation %s: %w", receipt, err)
	}
	return &r, nil
}

func (r *Receipt) save(h Host) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return write(h, receipt, append(data, '\n'), 0o644)
}

// installed returns the receipt, or what it would say of an installation by hand.
func installed(h Host) (*Receipt, error) {
	r, err := LoadReceipt(h)
	if !errors.Is(err, os.ErrNotExist) {
		return r, err
	}
	l, err := layout(h, "")
	if err != nil {
		return nil, err
	}
	unit := firstUnit(h, l.Units)
	if unit == "" {
		unit = l.Units[0]
	}
	return &Receipt{Flavor: l.Flavor, Unit: unit, Main: l.Config, Config: ConfigPath, DropIn: filepath.Join(l.DropIns, "capelin.toml")}, nil
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// write makes a file of the host, with its directories, durably.
func write(h Host, path string, data []byte, perm os.FileMode) error {
	if err := durable.MkdirAll(h.Path(filepath.Dir(path)), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(h.Path(path), data, perm)
}
