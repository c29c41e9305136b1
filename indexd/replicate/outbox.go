package replicate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/walk"
)

// Where things are in the index's storage (indexd/FORMAT.md, "Replication").
const (
	OutboxPrefix = "index/outbox/"
	ParkedPrefix = "index/parked/"
	StatePrefix  = "index/replication/"

	rulesPrefix  = StatePrefix + "rules/"
	leasesPrefix = StatePrefix + "leases/"
	walksPrefix  = StatePrefix + "walks/"
)

const (
	formatVersion = 1
	maxObject     = 64 << 10 // bytes of one
	maxRules      = 100
	// rulesFor is for how long an index goes on with the rules that it has read; rulesAge has room for it.
	rulesFor = 5 * time.Second
)

type (
	intentObject struct {
		Version int `json:"version"`
	}
	parkedObject struct {
		Version  int       `json:"version"`
		Revision uint64    `json:"revision"` // of the tag, that was refused; of a manifest 1
		Reason   string    `json:"reason"`
		Error    string    `json:"error"`
		Since    time.Time `json:"since"`
	}
	ruleObject struct {
		Version int        `json:"version"`
		Rule    index.Rule `json:"rule"`
	}
	leaseObject struct {
		Version int `json:"version"`
		Lease
	}
	walkObject struct {
		Version int    `json:"version"`
		Cursor  string `json:"cursor"` // "": it has come to its end
		Rule    string `json:"rule"`   // its version
		// Ended is when the last one did, Differences what that found.
		Ended       time.Time `json:"ended,omitzero"`
		Differences int       `json:"differences"`
		Found       int       `json:"found"` // by the present one, so far
	}
)

// Outbox is what an index keeps for replication in its storage: rules, and intents by rule. All methods may be called concurrently.
type Outbox struct {
	backend fetcher.Backend

	lock  chan struct{} // held while rules are read
	rules []Rule
	read  time.Time         // when they were; zero: never
	known map[string]Rule   // by key and version, of those that were read
	mu    sync.Mutex        // for what is below
	nudge map[string]func() // by rule: its worker here
	nudgs uint64
}

// NewOutbox returns what is in a storage.
func NewOutbox(b fetcher.Backend) *Outbox {
	return &Outbox{backend: b, lock: make(chan struct{}, 1), known: map[string]Rule{}, nudge: map[string]func(){}}
}

// keyPath is where a key's intents are, below a rule's.
func keyPath(k Key) string {
	if k.Tag != "" {
		return k.Repository + "/_tags/" + k.Tag
	}
	return k.Repository + "/_manifests/" + strings.Replace(string(k.Digest), ":", "/", 1)
}

// parsePath is the reverse of keyPath.
func parsePath(path string) (Key, error) {
	repo, rest, _ := strings.Cut(path, "/_")
	kind, name, _ := strings.Cut(rest, "/")
	k := Key{Repository: repo}
	err := index.CheckRepository(repo)
	switch kind {
	case "tags":
		k.Tag = name
		err = errors.Join(err, index.CheckTag(name))
	case "manifests":
		k.Digest = digest.Digest(strings.Replace(name, "/", ":", 1))
		err = errors.Join(err, index.CheckDigest(k.Digest))
	default:
		err = errors.Join(err, fmt.Errorf("%q is no kind: %w", kind, errdefs.ErrInvalidArgument))
	}
	return k, err
}

// parseIntent reads an intent's key.
func parseIntent(rule, key string) (Intent, error) {
	path := strings.TrimPrefix(key, OutboxPrefix+rule+"/")
	at := strings.LastIndexByte(path, '/')
	if at < 0 {
		return Intent{}, fmt.Errorf("object %s is no intent: %w", key, errdefs.ErrDataLoss)
	}
	k, err := parsePath(path[:at])
	if err == nil {
		var n uint64
		if n, err = strconv.ParseUint(path[at+1:], 10, 64); err == nil {
			return Intent{Key: k, Revision: n}, nil
		}
	}
	return Intent{}, fmt.Errorf("object %s is no intent: %w: %w", key, err, errdefs.ErrDataLoss)
}

// IsObject reports whether an index writes an object of that key for replication.
func IsObject(key string) bool {
	switch {
	case strings.HasPrefix(key, OutboxPrefix):
		rule, _, _ := strings.Cut(key[len(OutboxPrefix):], "/")
		_, err := parseIntent(rule, key)
		return err == nil
	case strings.HasPrefix(key, ParkedPrefix):
		_, path, _ := strings.Cut(key[len(ParkedPrefix):], "/")
		_, err := parsePath(path)
		return err == nil
	}
	for _, p := range []string{rulesPrefix, leasesPrefix, walksPrefix} {
		if name, ok := strings.CutPrefix(key, p); ok {
			return index.CheckRuleName(name) == nil
		}
	}
	return false
}

func intentKey(rule string, k Key, revision uint64) string {
	return OutboxPrefix + rule + "/" + keyPath(k) + "/" + strconv.FormatUint(revision, 10)
}

// Announcement is what is about to be written.
type Announcement struct {
	Key
	Revision uint64 // that a tag is to become; of a manifest 1
	Deleted  bool
	Foreign  bool // it came from another cluster
}

// Announce writes an intent for each rule that wants what is about to be written. It is durable when Announce returns; whoever
// gets an error writes nothing.
func (o *Outbox) Announce(ctx context.Context, a Announcement) error {
	rules, err := o.Rules(ctx)
	if err != nil {
		return err
	}
	for i := range rules {
		r := &rules[i]
		is, _ := r.Tag(a.Tag)
		if a.Tag == "" {
			is = r.Broken != nil || !r.NoReferrers
		}
		if !is || !r.Repository(a.Repository) || a.Foreign && !r.Forward && r.Broken == nil ||
			a.Deleted && r.Deletes == index.DeleteNone && r.Broken == nil {
			continue
		}
		if err := o.intent(ctx, r.Name, a.Key, a.Revision); err != nil {
			return err
		}
	}
	return nil
}

func (o *Outbox) intent(ctx context.Context, rule string, k Key, revision uint64) error {
	return o.put(ctx, intentKey(rule, k, revision), &intentObject{formatVersion})
}

// Written has this index's workers look at once.
func (o *Outbox) Written() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range o.nudge {
		f()
	}
}

// onWritten has a function be called, which returns at once, whenever something was written here, until stop is called.
func (o *Outbox) onWritten(f func()) (stop func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.nudgs++
	id := strconv.FormatUint(o.nudgs, 10)
	o.nudge[id] = f
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.nudge, id)
	}
}

// Rules returns the rules. Those that another index has set are known after rulesFor.
func (o *Outbox) Rules(ctx context.Context) ([]Rule, error) {
	select {
	case o.lock <- struct{}{}:
		defer func() { <-o.lock }()
	case <-ctx.Done():
		return nil, o.failed("reading", rulesPrefix, ctx.Err())
	}
	if !o.read.IsZero() && time.Since(o.read) < rulesFor {
		return o.rules, nil
	}
	start := time.Now()
	page, more, err := o.backend.List(ctx, rulesPrefix, "", maxRules)
	if err != nil {
		return nil, o.failed("listing", rulesPrefix, err)
	}
	if more {
		return nil, fmt.Errorf("index storage %s: there are more than %d rules: %w", o.backend.Name(), maxRules, errdefs.ErrResourceExhausted)
	}
	known, rules := map[string]Rule{}, []Rule{}
	for _, info := range page {
		id := info.Key + "\n" + info.Version
		r, ok := o.known[id]
		if !ok || info.Version == "" {
			r, err = o.readRule(ctx, info.Key)
			if errdefs.IsNotFound(err) {
				continue
			}
			if errdefs.IsDataLoss(err) {
				r, err = Rule{Rule: index.Rule{Name: info.Key[len(rulesPrefix):]}, Version: id, Broken: err}, nil
			}
			if err != nil {
				return nil, err
			}
		}
		known[id] = r
		rules = append(rules, r)
	}
	o.rules, o.known, o.read = rules, known, start
	return rules, nil
}

func (o *Outbox) readRule(ctx context.Context, key string) (Rule, error) {
	var obj ruleObject
	info, err := o.get(ctx, key, &obj)
	if err != nil {
		return Rule{}, err
	}
	r, err := newRule(obj.Rule, info.Version)
	if err == nil && key != rulesPrefix+r.Name {
		err = errors.New("it has another name")
	}
	if err != nil {
		return Rule{}, fmt.Errorf("index storage %s: rule %s: %w: %w", o.backend.Name(), key, err, errdefs.ErrDataLoss)
	}
	return r, nil
}

// SetRule adds a rule, or changes it. All that it is about is compared with what is there.
func (o *Outbox) SetRule(ctx context.Context, r index.Rule) error {
	if errs := r.Check(""); len(errs) > 0 {
		return fmt.Errorf("rule %s: %w: %w", r.Name, errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	r = r.Filled()
	rules, err := o.Rules(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(rules, func(is Rule) bool { return is.Name == r.Name })
	if at < 0 && len(rules) >= maxRules {
		return fmt.Errorf("there are %d rules already: %w", len(rules), errdefs.ErrResourceExhausted)
	}
	if at >= 0 && rules[at].Broken == nil {
		is, _ := encode(&rules[at].Rule)
		if to, _ := encode(&r); bytes.Equal(is, to) {
			return nil
		}
	}
	err = o.put(ctx, rulesPrefix+r.Name, &ruleObject{formatVersion, r})
	o.forget()
	return err
}

// forget has the rules be read again.
func (o *Outbox) forget() {
	o.lock <- struct{}{}
	o.read = time.Time{}
	<-o.lock
	o.Written()
}

// RemoveRule removes a rule, and then what was kept for it. An index that still knows it may write intents for some seconds more; they
// are removed with those of rules that are not known (Sweep).
func (o *Outbox) RemoveRule(ctx context.Context, name string) error {
	if err := index.CheckRuleName(name); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if _, err := o.backend.Stat(ctx, rulesPrefix+name); err != nil {
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("rule %s: %w", name, errdefs.ErrNotFound)
		}
		return o.failed("looking for", rulesPrefix+name, err)
	}
	if err := o.remove(ctx, rulesPrefix+name); err != nil {
		return err
	}
	o.forget()
	return o.clear(ctx, name)
}

// clear removes what was kept for a rule.
func (o *Outbox) clear(ctx context.Context, name string) error {
	for _, prefix := range []string{OutboxPrefix, ParkedPrefix} {
		for info, err := range walk.All(ctx, o.backend, prefix+name+"/", "") {
			if err == nil {
				err = o.backend.Delete(ctx, info.Key)
			}
			if err != nil {
				return o.failed("clearing", prefix+name, err)
			}
		}
	}
	return errors.Join(o.remove(ctx, walksPrefix+name), o.remove(ctx, leasesPrefix+name))
}

// Sweep removes what is kept for rules that are not there.
func (o *Outbox) Sweep(ctx context.Context) error {
	for _, prefix := range []string{OutboxPrefix, ParkedPrefix} {
		for after := prefix; ; {
			page, _, err := o.backend.List(ctx, prefix, after, 1)
			if err != nil {
				return o.failed("listing", prefix, err)
			}
			if len(page) == 0 {
				break
			}
			name, _, _ := strings.Cut(page[0].Key[len(prefix):], "/")
			after = prefix + name + "0" // "0" follows "/"
			_, err = o.backend.Stat(ctx, rulesPrefix+name)
			if errdefs.IsNotFound(err) && index.CheckRuleName(name) == nil {
				err = o.clear(ctx, name)
			}
			if err != nil {
				return o.failed("looking for", rulesPrefix+name, err)
			}
		}
	}
	return nil
}

// get reads an object.
func (o *Outbox) get(ctx context.Context, key string, into any) (fetcher.Info, error) {
	r, info, err := o.backend.Open(ctx, key, 0, -1)
	if errdefs.IsNotFound(err) {
		return info, err
	}
	if err != nil {
		return info, o.failed("reading", key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxObject+1))
	if err != nil {
		return info, o.failed("reading", key, err)
	}
	var head struct {
		Version int `json:"version"`
	}
	err = json.Unmarshal(data, &head)
	switch {
	case len(data) > maxObject:
		err = fmt.Errorf("it has more than %d bytes", maxObject)
	case err == nil && head.Version != formatVersion:
		err = fmt.Errorf("it has format version %d, only %d is known here; was it written by a newer index?", head.Version, formatVersion)
	case err == nil:
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return info, fmt.Errorf("index storage %s: object %s: %w: %w", o.backend.Name(), key, err, errdefs.ErrDataLoss)
	}
	return info, nil
}

func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	return append(data, '\n'), err
}

// put writes an object, whatever is there.
func (o *Outbox) put(ctx context.Context, key string, v any) error {
	data, err := encode(v)
	if err != nil {
		return err
	}
	if _, err := o.backend.Write(ctx, key, int64(len(data)), bytes.NewReader(data)); err != nil {
		return o.failed("writing", key, err)
	}
	return nil
}

func (o *Outbox) remove(ctx context.Context, key string) error {
	if err := o.backend.Delete(ctx, key); err != nil {
		return o.failed("deleting", key, err)
	}
	return nil
}

// failed says that the storage gave no answer, whatever it said.
func (o *Outbox) failed(what, key string, err error) error {
	//nolint:errorlint // its class must not show
	return fmt.Errorf("index storage %s: %s %s: %v: %w", o.backend.Name(), what, key, err, errdefs.ErrUnavailable)
}
