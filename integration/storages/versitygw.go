package storages

import (
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/capelin-io/capelin/fetcher/s3"
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

// Setenv gives this process the server's credentials, where AWS's library looks for them.
func (v *Versitygw) Setenv(t interface{ Setenv(key, value string) }) {
	t.Setenv("AWS_ACCESS_KEY_ID", v.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", v.Secret)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	for _, file := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(file, filepath.Join(v.dir, "none"))
	}
}

// Config is the configuration of what is below a prefix, for a server or a proxy before it.
func (v *Versitygw) Config(url, prefix string) s3.Config {
	return s3.Config{Bucket: v.Bucket, Prefix: prefix, Region: v.Region, Endpoint: url, PathStyle: true}
}
