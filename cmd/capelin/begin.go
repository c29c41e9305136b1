package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// beginning is what a role is started with.
type beginning[C any] struct {
	cfg  C
	file *daemon.File
	kept *daemon.Kept // nil: nothing is kept
	text []byte       // of the file
	old  bool         // cfg is not of the file, but of what is kept

	counted bool // this start is, as long as the role has not worked
	isUp    atomic.Bool
	works   atomic.Bool
}

// A file with which a role has begun so often, without coming up or for another reason than
// that it was told to end, is refused for a while, if there is an earlier one.
const (
	startsTried  = 3
	startsRecall = 10 * time.Minute
)

// begin reads a role's file, or if that is refused, and there is one, the text with which it
// worked last.
func begin[C any, P interface {
	*C
	daemon.Config
}](r role[C], s *source) (*beginning[C], error) {
	path, err := s.file()
	if err != nil {
		return nil, err
	}
	b := &beginning[C]{cfg: r.defaults(), file: &daemon.File{Path: path}}
	b.file.Mark()
	var refused error // why
	var problems []*config.Problem
	if b.text, refused = s.read(); refused == nil {
		refused = s.parse(b.text, &b.cfg)
	}
	if r.survive == nil || s.state == "" {
		return b, refused
	}
	b.kept = &daemon.Kept{Dir: s.state, Name: r.name}
	kept, since, err := b.kept.Last()
	text := config.Expanded(b.text)
	switch {
	case err != nil: // there is nothing else to start with
		return b, refused
	case refused != nil:
		problems = config.Problems(refused)
	case string(kept) == string(text):
		return b, nil
	default:
		n := b.kept.Starts(text)
		if n.Times < startsTried || time.Since(n.Last) > startsRecall {
			b.remember(text)
			return b, nil
		}
		refused = fmt.Errorf("%s: the %s was started with it %d times and did not come up: %s", path, r.name, n.Times, orKilled(n.Error))
	}
	last := r.defaults()
	if err := s.parseKept(kept, P(&last)); err != nil {
		return nil, fmt.Errorf("%w\nand what worked last, %s, is refused too: %w", refused, b.kept.Files()[0], err)
	}
	use, less := r.survive(last, b.cfg, problems)
	b.cfg, b.old, b.file.Less = use, true, less
	b.file.Refuse(refused, "the configuration that worked last, of "+since.UTC().Format(time.RFC3339), true)
	return b, nil
}

// refused returns why the changed file of a role that runs is refused: a daemon.Otherwise if begin
// would make something else of it than the role is.
func (b *beginning[C]) refused(r role[C], cfg C, why error) error {
	if b.kept == nil {
		return why
	}
	if _, _, err := b.kept.Last(); err != nil {
		return why // there is nothing with which it could begin
	}
	if _, less := r.survive(b.cfg, cfg, config.Problems(why)); less != b.file.Less {
		return daemon.Otherwise{Err: why}
	}
	return why
}

func orKilled(text string) string {
	if text == "" {
		return "it was killed, or hung"
	}
	return text
}

// remember notes a start with a text that has not worked yet.
func (b *beginning[C]) remember(text []byte) {
	b.counted = true
	if err := b.kept.Begin(text); err != nil {
		log.L.WithError(err).Warn("cannot remember that the role was started with this configuration")
	}
}

// tell says what the role is started with, if it is not its file.
func (b *beginning[C]) tell(ctx context.Context) {
	if st := b.file.State(); st.Refused != nil {
		log.G(ctx).WithError(st.Refused).WithField("instead", st.Instead).Error("the configuration is refused, an earlier one is used")
	}
}

// up is called when the role answers.
func (b *beginning[C]) up() { b.isUp.Store(true) }

// worked is called when all is up that the file asks for: its text is kept for later.
func (b *beginning[C]) worked(ctx context.Context) {
	b.works.Store(true)
	b.keep(ctx, b.text)
}

// used is called when the file was changed, and all of that applies already.
func (b *beginning[C]) used(ctx context.Context, text []byte) {
	if b.works.Load() {
		b.keep(ctx, text)
	}
}

func (b *beginning[C]) keep(ctx context.Context, text []byte) {
	if b.kept == nil || b.old {
		return
	}
	if err := b.kept.Worked(config.Expanded(text)); err != nil {
		log.G(ctx).WithError(err).Warn("cannot keep the configuration, with which the role would run on if a later one were refused")
	}
}

// ended remembers why the role has ended, nil if it was told to. What came up, and ended in
// order, has not failed, although it may have been without something.
func (b *beginning[C]) ended(ctx context.Context, why error) {
	if b == nil || b.kept == nil || b.old {
		return
	}
	var err error
	switch {
	case why != nil:
		err = b.kept.Failed(config.Expanded(b.text), why)
	case b.counted && b.isUp.Load():
		err = b.kept.Forget()
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot remember how the role has ended")
	}
}

// watched reports whether somebody starts the process again when it ends.
func watched() bool {
	return os.Getenv("NOTIFY_SOCKET") != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}

// read returns the file's text.
func (s *source) read() ([]byte, error) {
	path, err := s.file()
	if err != nil || path == "" {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return text, nil
}

// parse reads a file's text into a pointer to its defaults.
func (s *source) parse(text []byte, into any) error {
	path, err := s.file()
	if err != nil {
		return err
	}
	if path == "" {
		return config.Load("", into, s.set...)
	}
	return config.Parse(path, text, into, s.set...)
}

// parseKept reads what is kept. Keys that this version does not know, because another one
// has kept it, are left out.
func (s *source) parseKept(text []byte, into daemon.Config) error {
	err := config.Parse("", text, into, s.set...)
	for _, p := range config.Problems(err) {
		if !p.Unknown() {
			return err
		}
	}
	if err == nil {
		return nil
	}
	return into.Validate()
}
