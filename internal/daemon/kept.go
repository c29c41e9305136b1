package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/capelin-io/capelin/internal/durable"
)

// Kept is what a role keeps of its configuration between its starts, in a directory of its
// own: the text with which it worked last, as NAME.toml, and how often it has begun and not
// come up with another one, as NAME-starts.json. Everything is written durably.
type Kept struct{ Dir, Name string }

// Starts are those with one text, of which none came to its end.
type Starts struct {
	Sum   string    `json:"sum"` // of the text, SHA-256 in hex
	Times int       `json:"times"`
	Last  time.Time `json:"last"`
	Error string    `json:"error,omitempty"` // the last that was told; empty: it was killed
}

func (k *Kept) text() string   { return filepath.Join(k.Dir, k.Name+".toml") }
func (k *Kept) starts() string { return filepath.Join(k.Dir, k.Name+"-starts.json") }

// Files are the names of all that is kept.
func (k *Kept) Files() []string { return []string{k.text(), k.starts()} }

// Last returns the text with which the role worked last, and since when it is kept.
// If there is none the error is os.ErrNotExist.
func (k *Kept) Last() (text []byte, since time.Time, err error) {
	if text, err = os.ReadFile(k.text()); err != nil {
		return nil, since, err
	}
	fi, err := os.Stat(k.text())
	if err != nil {
		return nil, since, err
	}
	return text, fi.ModTime(), nil
}

// Worked keeps the text of a role that has come up.
func (k *Kept) Worked(text []byte) error {
	if had, _, err := k.Last(); err != nil || string(had) != string(text) {
		if err := durable.MkdirAll(k.Dir, 0o700); err != nil {
			return err
		}
		// The values of variables are in it.
		if err := durable.WriteFile(k.text(), text, 0o600); err != nil {
			return err
		}
	}
	return k.Forget()
}

// Forget forgets the starts.
func (k *Kept) Forget() error {
	if _, err := os.Stat(k.starts()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return durable.Remove(k.starts())
}

// Starts returns those with a text.
func (k *Kept) Starts(text []byte) Starts {
	s := Starts{Sum: sumOf(text)}
	data, err := os.ReadFile(k.starts())
	var had Starts
	if err == nil && json.Unmarshal(data, &had) == nil && had.Sum == s.Sum {
		return had
	}
	return s
}

// Begin remembers that the role is started with a text, before it is.
func (k *Kept) Begin(text []byte) error {
	s := k.Starts(text)
	s.Times++
	s.Last, s.Error = time.Now().UTC(), ""
	return k.save(s)
}

// Failed remembers why it has ended.
func (k *Kept) Failed(text []byte, why error) error {
	s := k.Starts(text)
	s.Last, s.Error = time.Now().UTC(), why.Error()
	return k.save(s)
}

func (k *Kept) save(s Starts) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(k.Dir, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(k.starts(), data, 0o600)
}

func sumOf(text []byte) string {
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}
