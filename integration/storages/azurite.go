package storages

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// Azurite is Microsoft's emulator of Azure's Blob Storage, over a directory. It differs from the real one:
//
//   - What blobs there are it writes to the disk every few seconds: a crash loses what was written since.
//   - A range after the end of a blob is answered with 206 and no bytes instead of 416.
type Azurite struct {
	*Process
	Account     string
	Credentials string // file with its key, which all of them have
	dir         string
}

const (
	azuriteAccount = "devstoreaccount1"
	azuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// StartAzurite starts one that keeps its objects below dir.
func StartAzurite(t TB, dir string) *Azurite {
	t.Helper()
	a := &Azurite{Account: azuriteAccount, Credentials: filepath.Join(dir, "key"), dir: dir}
	if err := os.WriteFile(a.Credentials, []byte(azuriteKey+"\n"), 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("azurite needs Node.js (make prepare installs it): %v", err)
	}
	main := Tool(t, "azurite/node_modules/azurite/dist/src/blob/main.js")
	a.Process = Start(t, Command{
		Name: "azurite", Dir: dir,
		Args: func(port int) []string {
			return []string{node, main, "--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(port),
				"--location", filepath.Join(dir, "data"), "--skipApiVersionCheck", "--disableTelemetry", "--silent"}
		},
	})
	return a
}

// Endpoint returns the account's URL at a server's.
func (a *Azurite) Endpoint(server string) string { return server + "/" + a.Account }

// Container makes a container.
func (a *Azurite) Container(t TB, name string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, a.Endpoint(a.URL())+"/"+name+"?restype=container", nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	date, version := time.Now().UTC().Format(http.TimeFormat), "2025-05-05"
	req.Header.Set("x-ms-date", date)
	req.Header.Set("x-ms-version", version)
	// https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
	key, _ := base64.StdEncoding.DecodeString(azuriteKey)
	mac := hmac.New(sha256.New, key)
	mac.Write(bytes.Join([][]byte{[]byte("PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:" + date), []byte("x-ms-version:" + version),
		[]byte("/" + a.Account + "/" + a.Account + "/" + name), []byte("restype:container")}, []byte("\n")))
	req.Header.Set("Authorization", "SharedKey "+a.Account+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("making a container: %s", resp.Status)
	}
}

// Saved waits until a blob of that name, or of another one with it, would survive a crash.
func (a *Azurite) Saved(t TB, name string) {
	t.Helper()
	for end := time.Now().Add(startLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		blobs, _ := os.ReadFile(filepath.Join(a.dir, "data", "__azurite_db_blob__.json"))
		extents, _ := os.ReadFile(filepath.Join(a.dir, "data", "__azurite_db_blob_extent__.json"))
		if bytes.Contains(blobs, []byte(name+`"`)) && bytes.Contains(extents, []byte(`"locationId"`)) {
			return
		}
	}
	t.Fatalf("azurite does not save %s", name)
}
