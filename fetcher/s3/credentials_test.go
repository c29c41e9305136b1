package s3

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// Who has no credentials hears where they belong, and what a credential_process prints is in no error.
func TestWithoutCredentials(t *testing.T) {
	for _, tt := range []struct {
		name, config, want string
	}{
		{"none", "", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"},
		{"process", "[default]\ncredential_process = echo much-of-a-secret\n", "credential_process"},
		{
			"process that fails",
			"[default]\ncredential_process = sh -c 'echo much-of-a-secret; echo much-of-a-secret >&2; exit 3'\n",
			"credential_process",
		},
		{
			"process without a key",
			"[default]\ncredential_process = echo {\"Version\":1,\"SecretAccessKey\":\"much-of-a-secret\"}\n",
			"credential_process",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nothing(t)
			t.Setenv("AWS_ACCESS_KEY_ID", "")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "")
			config := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(config, []byte(tt.config), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_CONFIG_FILE", config)
			b, err := Open(Config{Bucket: "b", Region: "r", Endpoint: "http://127.0.0.1:1"})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			err = b.Check(t.Context())
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "much-of-a-secret") ||
				strings.Contains(err.Error(), "imds") || strings.Contains(err.Error(), "operation error") {
				t.Error(err)
			}
			if f := failureOf(err); !f.certain() {
				t.Error("it is not known whether something was changed")
			}
		})
	}
}
