package moving

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/capelin-io/capelin/fetcher"
)

// Kind is what moves.
type Kind struct {
	noun    string // what it is called
	user    string // who uses it
	users   string
	command string // what moves it

	dir      string   // where a move keeps what it has to
	prefixes []string // of all that moves, in ascending order
	large    bool     // objects of any size, each of which was named after its bytes, and small ones beside them
	parallel int      // so many objects are copied at once
	batch    int      // after so many objects at most it is remembered how far the copy is
	few      int      // so many objects of the journal may be left when writes begin to wait
}

var (
	// Index is an index: small objects, which are changed by compare-and-swap.
	Index = &Kind{
		noun: "index", user: "an index", users: "indexes", command: "capelin index move",
		dir: "capelin-move", prefixes: []string{"index/"}, parallel: 16, batch: 1000, few: 200,
	}
	// Blobs are what origins keep in a backend: blobs, and a record beside each.
	Blobs = &Kind{
		noun: "backend", user: "an origin", users: "origins", command: "capelin origin move-backend",
		dir: "capelin-move-blobs", prefixes: []string{"blobs/", "records/"}, large: true, parallel: 8, batch: 64, few: 20,
	}
)

// What a move keeps in the storages below dir, beside what it moves.
func (k *Kind) stateKey() string      { return k.dir + "/state" }   // in the old one
func (k *Kind) targetKey() string     { return k.dir + "/target" }  // in the new one
func (k *Kind) journalPrefix() string { return k.dir + "/journal" } // in the old one, then the move's id, the epoch and the key
func (k *Kind) memberPrefix() string  { return k.dir + "/members/" }

// journal is where writes of an epoch of a move leave their keys.
func (k *Kind) journal(s *state, epoch int) string {
	return fmt.Sprintf("%s/%s/%08d/", k.journalPrefix(), s.ID, epoch)
}

// a is "an index" or "a backend".
func (k *Kind) a() string {
	if k.large {
		return "a " + k.noun
	}
	return "an " + k.noun
}

// moves reports whether an object of that key does.
func (k *Kind) moves(key string) bool {
	return slices.ContainsFunc(k.prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// able reports whether a storage can have a part in a move.
func (k *Kind) able(c fetcher.Capabilities) bool {
	return c.Write && c.List && c.Delete && (c.CompareAndSwap || k.large)
}

// unable says what one lacks that is not able.
func (k *Kind) unable() error {
	if k.large {
		return errors.New("must write, list and delete")
	}
	return fmt.Errorf("cannot keep %s: it must write, list, delete, compare and swap", k.a())
}
