package ecr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// source is AWS, in virtual time.
type source struct {
	asked int
	life  time.Duration
	takes time.Duration
	err   error
}

func (s *source) ask(ctx context.Context) (string, time.Time, error) {
	s.asked++
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return "", time.Time{}, &Error{"r", "too slow", errdefs.ErrUnavailable}
	}
	return numbered(s.asked), time.Now().Add(s.life), s.err
}

func numbered(n int) string { return fmt.Sprintf("secret-%d", n) }

var (
	errAway   = &Error{"r", "throttled", errdefs.ErrUnavailable}
	errDenied = &Error{"r", "denied", errdefs.ErrPermissionDenied}
)

// inBubble runs a test with a source and tokens from it. get wants a token of that number, or an error for a negative one.
func inBubble(t *testing.T, f func(t *testing.T, s *source, tokens *Tokens, get func(want int) *Token)) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{life: 12 * time.Hour, takes: time.Second}
		tokens := From(s.ask)
		defer tokens.Close()
		f(t, s, tokens, func(want int) *Token {
			t.Helper()
			token, err := tokens.Get(t.Context())
			synctest.Wait()
			if want < 0 && err == nil || want >= 0 && (err != nil || token.secret != numbered(want)) {
				t.Errorf("token %v, %v, want number %d", token, err, want)
			}
			return token
		})
	})
}

// However many ask, AWS is asked once, also when whoever came first has given up.
func TestShared(t *testing.T) {
	inBubble(t, func(t *testing.T, s *source, tokens *Tokens, get func(int) *Token) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := tokens.Get(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 100 {
			wg.Go(func() {
				if token, err := tokens.Get(t.Context()); err != nil || token.secret != numbered(1) {
					t.Error(token, err)
				}
			})
		}
		cancel()
		wg.Wait()
		get(1)
		if s.asked != 1 {
			t.Errorf("AWS was asked %d times", s.asked)
		}
	})
}

// A token is renewed when 80 % of its time are over, and nobody waits for it.
func TestRenewed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *source, _ *Tokens, get func(int) *Token) {
		get(1)
		time.Sleep(9*time.Hour + 35*time.Minute)
		get(1)
		time.Sleep(2 * time.Minute)
		s.takes = 0
		before := time.Now()
		get(1) // and the next one is asked for
		if took := time.Since(before); took != 0 {
			t.Errorf("it took %v", took)
		}
		get(2)
		get(2)
		if s.asked != 2 {
			t.Errorf("AWS was asked %d times", s.asked)
		}
	})
}

// While a token can be used a failure to renew it is nobody's matter, and AWS is not asked all the time.
func TestRenewalFails(t *testing.T) {
	inBubble(t, func(t *testing.T, s *source, _ *Tokens, get func(int) *Token) {
		get(1)
		s.err, s.takes = errAway, 0
		time.Sleep(10 * time.Hour)
		for range 119 * 60 {
			get(1)
			time.Sleep(time.Second)
		}
		if s.asked < 100 || s.asked > 121 {
			t.Errorf("AWS was asked %d times in two hours", s.asked)
		}
		time.Sleep(time.Minute)
		before := s.asked
		for range 100 {
			get(-1)
			time.Sleep(100 * time.Millisecond)
		}
		if n := s.asked - before; n < 9 || n > 11 {
			t.Errorf("without a token AWS was asked %d times in 10 s", n)
		}
		s.err = nil
		time.Sleep(time.Second)
		get(s.asked + 1)
	})
}

// A refused token is replaced once, and then not for a while, whoever refuses it.
func TestRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, s *source, tokens *Tokens, get func(int) *Token) {
		first := get(1)
		if tokens.Refused(first) {
			t.Error("a token that is a second old is to be replaced")
		}
		get(1)
		time.Sleep(31 * time.Second)
		for range 2 {
			if !tokens.Refused(first) {
				t.Error("it is not replaced")
			}
		}
		second := get(2)
		if !tokens.Refused(first) {
			t.Error("there is another one than the first")
		}
		if tokens.Refused(second) {
			t.Error("the second is to be replaced at once")
		}
		get(2)
		// If there is no other one, it is better than none.
		time.Sleep(31 * time.Second)
		s.err = errAway
		if !tokens.Refused(second) {
			t.Error("it is not replaced")
		}
		get(-1)
		if tokens.Refused(second) {
			t.Error("it is to be replaced at once")
		}
		get(2)
		if s.asked != 3 {
			t.Errorf("AWS was asked %d times", s.asked)
		}
	})
}

// Who may not have a token does not ask for one all the time.
func TestDenied(t *testing.T) {
	inBubble(t, func(t *testing.T, s *source, tokens *Tokens, get func(int) *Token) {
		s.err = errDenied
		s.takes = 0
		for range 100 {
			if _, err := tokens.Get(t.Context()); !errdefs.IsPermissionDenied(err) {
				t.Error(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if s.asked != 1 {
			t.Errorf("AWS was asked %d times in 10 s", s.asked)
		}
		s.err = nil
		get(2)
	})
}

// A clock that is wrong does not make AWS be asked for each request; an end that does not come ends.
func TestOdd(t *testing.T) {
	inBubble(t, func(t *testing.T, s *source, tokens *Tokens, get func(int) *Token) {
		s.life = -13 * time.Hour
		token := get(1)
		get(1)
		time.Sleep(minLife)
		get(2)
		if text := fmt.Sprintf("%v %+v %#v %s", token, token, token, token); strings.Contains(text, "secret") {
			t.Error(text)
		}
		time.Sleep(minLife)
		s.takes = time.Hour
		before := time.Now()
		get(-1)
		if took := time.Since(before); took != askTimeout {
			t.Errorf("it took %v", took)
		}
		time.Sleep(time.Minute)
		done := make(chan error)
		go func() {
			_, err := tokens.Get(t.Context())
			done <- err
		}()
		synctest.Wait()
		tokens.Close()
		if err := <-done; !errdefs.IsUnavailable(err) {
			t.Error(err)
		}
	})
}

func TestParse(t *testing.T) {
	for host, want := range map[string]Registry{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com":                {Region: "eu-west-1"},
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn":            {Region: "cn-north-1"},
		"123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com":       {Region: "us-gov-west-1", FIPS: true},
		"123456789012.dkr-ecr.eu-west-1.on.aws":                       {Region: "eu-west-1", Dual: true},
		"123456789012.dkr-ecr-fips.us-east-1.on.aws":                  {Region: "us-east-1", FIPS: true, Dual: true},
		"123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn": {Region: "cn-north-1", Dual: true},
		"123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu":            {Region: "eusc-de-east-1"},
		"123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov":               {Region: "us-iso-east-1"},
		"public.ecr.aws": {},
		"12345678901.dkr.ecr.eu-west-1.amazonaws.com":               {},
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example": {},
		"evil.example/123456789012.dkr.ecr.eu-west-1.amazonaws.com": {},
		"123456789012.dkr.ecr.evil.example.amazonaws.com":           {},
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com:443":          {},
		"123456789012.dkr-ecr.eu-west-1.amazonaws.com":              {},
		"123456789012.dkr.ecr.eu-west-1.on.aws":                     {},
		"docker.io":                                                 {}, "": {},
	} {
		got, ok := Parse(host)
		if got != want || ok != (want != Registry{}) {
			t.Errorf("%s: %+v, %v", host, got, ok)
		}
	}
}
