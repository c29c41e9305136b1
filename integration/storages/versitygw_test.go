package storages

import (
	"net/http"
	"testing"
)

func TestVersitygwStarts(t *testing.T) {
	v := StartVersitygw(t, t.TempDir())
	for range 2 {
		resp, err := http.Get(v.URL() + "/" + v.Bucket)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("without a signature: status %d", resp.StatusCode)
		}
		http.DefaultClient.CloseIdleConnections()
		v.Kill()
		v.Restart()
	}
}
