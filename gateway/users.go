package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/crypto/bcrypt"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/reload"
)

// users knows passwords and tokens, from files that are read again when they
// change. It is safe for concurrent use.
type users struct {
	passwords, tokens string // paths; empty: none

	// right remembers for some minutes which passwords were right, because bcrypt is meant to be slow, and a push has
	// many requests; wrong those that were not, so that who repeats one (a node with an old pull secret) does not guess. Keys are
	// hashes, by a secret of this process, of all that decides, the stored hash included.
	right, wrong *lru.Cache[[32]byte, time.Time]
	secret       [32]byte
	compare      func(hash, password []byte) error // bcrypt's

	mu      sync.Mutex
	guesses *guesses

	files *reload.Files[credentials]
}

// credentials are what the files hold.
type credentials struct {
	hashes map[string][]byte // bcrypt, by user
	all    [][]byte          // the same hashes
	bearer map[[32]byte]token
}

// token is a bearer token.
type token struct {
	user    string
	expires time.Time // zero: never
}

// tokenFile is the file of tokens.
type tokenFile struct {
	Token []struct {
		User    string    `toml:"user" comment:"Whose it is."`
		SHA256  string    `toml:"sha256" comment:"SHA-256 of the token, hexadecimal."`
		Expires time.Time `toml:"expires" comment:"Until when it is valid; absent: for ever."`
	} `toml:"token" comment:"Bearer tokens."`
}

const (
	maxUserFile    = 4 << 20 // bytes
	rememberedFor  = 5 * time.Minute
	maxRemembered  = 4096
	maxPassword    = 72 // bytes: bcrypt's own limit
	shareOfMachine = 4  // one in so many processors checks passwords: other roles of a server want them, too
)

func newUsers(passwords, tokens string) (*users, error) {
	u := &users{
		passwords: passwords, tokens: tokens,
		compare: bcrypt.CompareHashAndPassword,
		guesses: newGuesses(max(runtime.GOMAXPROCS(0)/shareOfMachine, 1)),
	}
	u.right, _ = lru.New[[32]byte, time.Time](maxRemembered) // it fails only for sizes below 1
	u.wrong, _ = lru.New[[32]byte, time.Time](maxRemembered)
	_, _ = rand.Read(u.secret[:]) // never fails
	var err error
	u.files, err = reload.Open(u.read, ops.Reread("users"), passwords, tokens)
	return u, err
}

// read reads both files.
func (u *users) read() (credentials, error) {
	c := credentials{hashes: map[string][]byte{}, bearer: map[[32]byte]token{}}
	if u.passwords != "" {
		data, err := readFile("users", u.passwords)
		if err != nil {
			return c, err
		}
		sc := bufio.NewScanner(bytes.NewReader(data))
		for n := 1; sc.Scan(); n++ {
			line := strings.TrimSpace(sc.Text())
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			name, hash, ok := strings.Cut(line, ":")
			if _, err := bcrypt.Cost([]byte(hash)); !ok || name == "" || name == Anonymous || err != nil {
				return c, fmt.Errorf("%s:%d: not a user's name and bcrypt hash (htpasswd -nB NAME makes such lines)", u.passwords, n)
			}
			c.hashes[name] = []byte(hash)
			c.all = append(c.all, []byte(hash))
		}
		if err := sc.Err(); err != nil {
			return c, fmt.Errorf("%s: %w", u.passwords, err)
		}
	}
	if u.tokens != "" {
		data, err := readFile("tokens", u.tokens)
		if err != nil {
			return c, err
		}
		var f tokenFile
		if err := config.Parse(u.tokens, data, &f); err != nil {
			return c, err
		}
		for i, t := range f.Token {
			sum, err := hex.DecodeString(t.SHA256)
			if err != nil || len(sum) != sha256.Size || t.User == "" || t.User == Anonymous {
				return c, fmt.Errorf("%s: token %d needs a user and the SHA-256 of the token in hexadecimal", u.tokens, i+1)
			}
			c.bearer[[32]byte(sum)] = token{t.User, t.Expires}
		}
	}
	return c, nil
}

// readFile reads the file that a key names.
func readFile(key, path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, config.Unreadable(key, path, err)
	}
	if info.Size() > maxUserFile {
		return nil, config.Invalid(key, "%s has %d bytes, more than %d", path, info.Size(), maxUserFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, config.Unreadable(key, path, err)
	}
	return data, nil
}

// password reports whether it is the user's: nil if so, errWrong, or a tooMany. It takes as long for a user that there
// is not as for one that there is. from is the address of who asks.
func (u *users) password(ctx context.Context, user, password, from string) error {
	c := u.files.Get()
	hash, known := c.hashes[user]
	if !known {
		if hash = u.stranger(&c, user); hash == nil {
			return errWrong
		}
	}
	if len(password) > maxPassword {
		return errWrong
	}
	key := u.hash("%q %q %q", user, hash, password)
	if done, err := u.remembered(key, known); done {
		return err
	}
	a := &attempt{user: user, address: addressOf(from), begin: make(chan error, 1)}
	if err := u.enter(ctx, a); err != nil {
		return err
	}
	if done, err := u.remembered(key, known); done { // somebody has said the same while this one waited
		u.mu.Lock()
		defer u.mu.Unlock()
		u.guesses.spared(time.Now())
		return err
	}
	err := u.compare(hash, []byte(password))
	now, right := time.Now(), err == nil && known
	if right {
		u.right.Add(key, now)
	} else {
		u.wrong.Add(key, now)
		err = errWrong
	}
	u.mu.Lock()
	locked := u.guesses.done(now, a, right)
	u.mu.Unlock()
	if locked {
		log.G(ctx).WithFields(log.Fields{"remote": from, "user": user, "result": "refused"}).Warn("too many wrong passwords")
	}
	return err
}

// remembered reports whether it is known if a password is right.
func (u *users) remembered(key [32]byte, known bool) (done bool, err error) {
	since := time.Now().Add(-rememberedFor)
	if at, ok := u.right.Get(key); ok && known && at.After(since) {
		return true, nil
	}
	if at, ok := u.wrong.Get(key); ok && at.After(since) {
		return true, errWrong
	}
	return false, nil
}

// stranger returns the hash of some user, always the same one, for somebody who is none: so nobody can tell from the time
// that an answer takes who is a user, whatever costs the hashes have. nil: there are no users.
func (u *users) stranger(c *credentials, user string) []byte {
	if len(c.all) == 0 {
		return nil
	}
	sum := u.hash("%q", user)
	return c.all[binary.BigEndian.Uint64(sum[:])%uint64(len(c.all))]
}

func (u *users) hash(format string, args ...any) (sum [32]byte) {
	h := hmac.New(sha256.New, u.secret[:])
	fmt.Fprintf(h, format, args...)
	return [32]byte(h.Sum(nil))
}

// enter returns when a password may be checked.
func (u *users) enter(ctx context.Context, a *attempt) error {
	u.mu.Lock()
	err := u.guesses.ask(time.Now(), a)
	u.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-a.begin:
		return err
	case <-ctx.Done():
		u.mu.Lock()
		defer u.mu.Unlock()
		u.guesses.left(time.Now(), a)
		return ctx.Err()
	}
}

// whose returns the token that a secret is; ok is false if it is none.
func (u *users) whose(secret string) (t token, ok bool, err error) {
	t, ok = u.files.Get().bearer[sha256.Sum256([]byte(secret))] // equal hashes are equal secrets; how long it takes tells nothing of them
	if ok && !t.expires.IsZero() && time.Now().After(t.expires) {
		err = errors.Join(errWrong, fmt.Errorf("the token of %s expired %s", t.user, t.expires.Format(time.RFC3339)))
	}
	return t, ok, err
}
