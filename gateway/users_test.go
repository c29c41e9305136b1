package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// checkTakes is what a password's check takes in a bubble.
const checkTakes = 200 * time.Millisecond

// slowUsers are alice and others with the passwords "pw-<name>", whose checks take some time, and are noted.
func slowUsers(t *testing.T, costs map[string]int) (u *users, checked func() []int) {
	t.Helper()
	var text strings.Builder
	for name, cost := range costs {
		hash, err := bcrypt.GenerateFromPassword([]byte("pw-"+name), cost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s:%s\n", name, hash)
	}
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := newUsers(path, "")
	if err != nil {
		t.Fatal(err)
	}
	u.guesses = newGuesses(1)
	var mu sync.Mutex
	var all []int
	u.compare = func(hash, password []byte) error {
		cost, err := bcrypt.Cost(hash)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		all = append(all, cost)
		mu.Unlock()
		time.Sleep(checkTakes)
		return bcrypt.CompareHashAndPassword(hash, password)
	}
	return u, func() []int {
		mu.Lock()
		defer mu.Unlock()
		was := all
		all = nil
		return was
	}
}

// A hundred wrong passwords at once keep nobody waiting for longer than a check or two, and take no more of
// the machine than one check at a time does.
func TestGuessersStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, checked := slowUsers(t, map[string]int{"alice": bcrypt.MinCost})
		var wg sync.WaitGroup
		refused := make(chan error, 100)
		for i := range 100 {
			wg.Go(func() { refused <- u.password(t.Context(), "alice", fmt.Sprint("guess", i), "192.0.2.1:1") })
		}
		synctest.Wait()
		begin := time.Now()
		if err := u.password(t.Context(), "alice", "pw-alice", "198.51.100.7:1"); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > 3*checkTakes {
			t.Errorf("it took %v", took)
		}
		wg.Wait()
		if n := len(checked()); n > addressBurst+1+int(time.Since(begin)/addressEvery) {
			t.Errorf("%d were checked", n)
		}
		var many *tooMany
		told := 0
		for range 100 {
			if err := <-refused; errors.As(err, &many) {
				told++
			} else if !errors.Is(err, errWrong) {
				t.Error(err)
			}
		}
		if told < 80 {
			t.Errorf("%d were told to come back later", told)
		}

		// Who has logged in does not wait again, nor does who says the same wrong thing.
		begin = time.Now()
		for range 50 {
			if err := u.password(t.Context(), "alice", "pw-alice", "203.0.113.5:1"); err != nil {
				t.Error(err)
			}
			if err := u.password(t.Context(), "alice", "guess0", "203.0.113.5:1"); err != errWrong {
				t.Error(err)
			}
		}
		if n := len(checked()); n != 0 || time.Since(begin) != 0 {
			t.Errorf("%d were checked, in %v", n, time.Since(begin))
		}
		time.Sleep(rememberedFor)
		if err := u.password(t.Context(), "alice", "pw-alice", "203.0.113.5:1"); err != nil || len(checked()) != 1 {
			t.Errorf("after a while: %v", err)
		}
	})
}

// Who goes while it waits gives way.
func TestGuesserLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, checked := slowUsers(t, map[string]int{"alice": bcrypt.MinCost})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() { _ = u.password(ctx, "alice", fmt.Sprint(i), "192.0.2.1:1") })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if err := u.password(t.Context(), "alice", "pw-alice", "192.0.2.1:1"); err != nil {
			t.Error(err)
		}
		if n := len(checked()); n != 2 {
			t.Errorf("%d were checked", n)
		}
	})
}

// Whoever is no user is compared with somebody's hash, always the same one's, so that costs tell nothing.
func TestStrangersCostWhatUsersDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, checked := slowUsers(t, map[string]int{"alice": 4, "bob": 5, "carol": 6})
		seen := map[int]int{}
		for i := range 60 {
			var first int
			for try := range 2 {
				err := u.password(t.Context(), fmt.Sprint("stranger", i), fmt.Sprint("guess", try), fmt.Sprintf("10.0.%d.1:1", i))
				if !errors.Is(err, errWrong) {
					t.Fatal(err)
				}
				cost := checked()
				if len(cost) != 1 || try > 0 && cost[0] != first {
					t.Fatalf("stranger %d: %v after %d", i, cost, first)
				}
				first = cost[0]
			}
			seen[first]++
		}
		for cost := 4; cost <= 6; cost++ {
			if seen[cost] < 5 {
				t.Errorf("of 60 strangers %v", seen)
			}
		}
		// Not even with the password of whoever lends the hash.
		for _, name := range []string{"alice", "bob", "carol"} {
			for i := range 6 {
				from := fmt.Sprintf("10.1.%d.1:1", i)
				if err := u.password(t.Context(), fmt.Sprint("x", i), "pw-"+name, from); !errors.Is(err, errWrong) {
					t.Errorf("a stranger with %s's password: %v", name, err)
				}
			}
		}
	})
}
