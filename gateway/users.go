package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/expirable"
	"golang.org/x/crypto/bcrypt"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/ops"
	"github.com/capelin-io/capelin/internal/reload"
)

// users knows passwords and tokens, from files that are read again when they
// change. It is safe for concurrent use.
type users struct {
	passwords, tokens string // paths; empty: none

	// verified remembers for a minute which passwords were right, because bcrypt is
	// meant to be slow, and a push has many requests. Keys are hashes of all that
	// decides, the stored hash included.
	verified *lru.LRU[[32]byte, struct{}]
	// slots bounds how many passwords are hashed at once.
	slots chan struct{}

	files *reload.Files[credentials]
}

// credentials are what the files hold.
type credentials struct {
	hashes map[string][]byte // bcrypt, by user
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
	maxUserFile  = 4 << 20 // bytes
	verifiedFor  = time.Minute
	bcryptAtOnce = 4
)

// nobody's hash takes as long to compare with as anybody's (bcrypt.DefaultCost). It is
// that of a random password, made beforehand: making one takes every start 70 ms.
var nobody = []byte("$2a$10$1pt9IUvAqMi9UUaixS/5qug5e4CrAYRYAkd/pVRKO1krHM7DCXY82")

func newUsers(passwords, tokens string) (*users, error) {
	u := &users{
		passwords: passwords, tokens: tokens,
		verified: lru.NewLRU[[32]byte, struct{}](4096, nil, verifiedFor),
		slots:    make(chan struct{}, bcryptAtOnce),
	}
	var err error
	u.files, err = reload.Open(u.read, ops.Reread("users"), passwords, tokens)
	return u, err
}

// enabled reports whether anybody can log in.
func (u *users) enabled() bool { return u.passwords != "" || u.tokens != "" }

// read reads both files.
func (u *users) read() (credentials, error) {
	c := credentials{map[string][]byte{}, map[[32]byte]token{}}
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

// password reports whether it is the user's. It takes as long for a user that there
// is not.
func (u *users) password(ctx context.Context, user, password string) error {
	hash, known := u.files.Get().hashes[user]
	if !known {
		hash = nobody
	}
	if len(password) > 72 { // bcrypt's own limit
		return errWrong
	}
	key := sha256.Sum256([]byte(user + "\x00" + string(hash) + "\x00" + password))
	if _, ok := u.verified.Get(key); ok && known {
		return nil
	}
	select {
	case u.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-u.slots
	if err != nil || !known {
		return errWrong
	}
	u.verified.Add(key, struct{}{})
	return nil
}

// who returns whose token it is.
func (u *users) who(secret string) (string, error) {
	t, ok := u.files.Get().bearer[sha256.Sum256([]byte(secret))] // equal hashes are equal secrets; how long it takes tells nothing of them
	switch {
	case !ok:
		return "", errWrong
	case !t.expires.IsZero() && time.Now().After(t.expires):
		return "", errors.Join(errWrong, fmt.Errorf("the token of %s expired %s", t.user, t.expires.Format(time.RFC3339)))
	}
	return t.user, nil
}
