package storages

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/azure"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// azureLarge is more than one block.
const azureLarge = 8<<20 + 17

var azureContainers atomic.Int64

// config returns that of a new container.
func (a *Azurite) config(t *testing.T, server string) azure.Config {
	t.Helper()
	name := fmt.Sprintf("capelin-%d", azureContainers.Add(1))
	a.Container(t, name)
	return azure.Config{Account: a.Account, Container: name, Prefix: "some/where/", Endpoint: a.Endpoint(server), Credentials: a.Credentials}
}

func openAzure(t *testing.T, cfg azure.Config) fetcher.Backend {
	t.Helper()
	b, err := azure.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAzure(t *testing.T) {
	t.Parallel()
	a := StartAzurite(t, t.TempDir())
	fetchertest.Run(t, func(t *testing.T) fetcher.Backend { return openAzure(t, a.config(t, a.URL())) }, fetchertest.Options{
		Large: azureLarge,
		Again: func(t *testing.T, b fetcher.Backend) fetcher.Backend {
			path := strings.SplitN(b.Name(), "/", 3)
			return openAzure(t, azure.Config{Account: a.Account, Container: path[1], Prefix: path[2] + "/",
				Endpoint: a.Endpoint(a.URL()), Credentials: a.Credentials})
		},
	})
}

func TestAzureFaults(t *testing.T) {
	t.Parallel()
	a := StartAzurite(t, t.TempDir())
	fetchertest.RunFaults(t, func(t *testing.T) (fetcher.Backend, *fetchertest.Proxy) {
		p := fetchertest.NewProxy(t, a.URL())
		return openAzure(t, a.config(t, p.URL(a.URL()))), p
	}, fetchertest.FaultOptions{Options: fetchertest.Options{Large: azureLarge}, WritesAgain: true})
}

// TestAzureCrash: the server is killed when it has a part of an object.
func TestAzureCrash(t *testing.T) {
	t.Parallel()
	a := StartAzurite(t, t.TempDir())
	b := openAzure(t, a.config(t, a.URL()))
	defer b.Close()
	old := strings.Repeat("old", 1000)
	if _, err := b.Write(t.Context(), "there", -1, strings.NewReader(old)); err != nil {
		t.Fatal(err)
	}
	a.Saved(t, "there")
	data := make([]byte, 2*azureLarge)
	for _, key := range []string{"there", "new"} {
		killed := false
		crash := readerFunc(func([]byte) (int, error) {
			if !killed {
				a.Kill()
				a.Restart()
				killed = true
			}
			return 0, io.EOF
		})
		_, err := b.Write(t.Context(), key, -1, io.MultiReader(bytes.NewReader(data), crash))
		want := old
		switch {
		case err == nil: // a block that was not acknowledged was sent again
			want = string(data)
		case !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), key):
			t.Errorf("%s: %v", key, err)
		case key == "new":
			if _, err := b.Stat(t.Context(), key); !errdefs.IsNotFound(err) {
				t.Errorf("what was never written whole: %v", err)
			}
			continue
		}
		if got := readAll(t, b, key); string(got) != want {
			t.Errorf("%s has %d bytes of another content after %v", key, len(got), err)
		}
	}
	if _, err := b.Write(t.Context(), "new", -1, strings.NewReader(old)); err != nil {
		t.Error(err)
	}
}

func TestAzureThereAndBack(t *testing.T) {
	t.Parallel()
	a := StartAzurite(t, t.TempDir())
	b := openAzure(t, a.config(t, a.URL()))
	defer b.Close()
	if _, err := b.Write(t.Context(), "there", -1, strings.NewReader("there")); err != nil {
		t.Fatal(err)
	}
	a.Saved(t, "there") // and so the container is there, too, when it is killed
	thereAndBack(t, b, func() {
		a.Kill()
		a.Restart()
	})
}

func TestAzureLarge(t *testing.T) {
	size := int64(200 << 20)
	if *full {
		size = 5 << 30
	}
	a := StartAzurite(t, t.TempDir())
	b := openAzure(t, a.config(t, a.URL()))
	defer b.Close()
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), size) }
	if info, err := b.Write(t.Context(), "large", size, content()); err != nil || info.Size != size {
		t.Fatalf("%+v, %v", info, err)
	}
	r, _, err := b.Open(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, want := sha256.New(), sha256.New()
	if _, err := io.Copy(got, r); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(want, content())
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Error("other bytes came back")
	}
}
