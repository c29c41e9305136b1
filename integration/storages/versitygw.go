package storages

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// Versitygw is an S3 server, over a directory.
type Versitygw struct {
	*Process
	Bucket         string
	Access, Secret string
	Region         string
	dir            string
}

// StartVersitygw starts one that keeps its objects below dir, with one bucket.
func StartVersitygw(t TB, dir string) *Versitygw {
	t.Helper()
	v := &Versitygw{Bucket: "capelin", Access: "access", Secret: "not-much-of-a-secret", Region: "us-east-1", dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "data", v.Bucket), 0o750); err != nil {
		t.Fatalf("%v", err)
	}
	tool := Tool(t, "versitygw")
	v.Process = Start(t, Command{
		Name: "versitygw", Dir: dir,
		Env: []string{"ROOT_ACCESS_KEY_ID=" + v.Access, "ROOT_SECRET_ACCESS_KEY=" + v.Secret},
		Args: func(port int) []string {
			return []string{tool, "--port", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "--region", v.Region,
				"--quiet", "--keep-alive", "posix", filepath.Join(dir, "data")}
		},
	})
	return v
}
