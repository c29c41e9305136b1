package plugin

import (
	"strings"
	"testing"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Who this node is, and who may have what, is never taken from an earlier file if the
// refused one says something else, or if that cannot be told.
func TestSurvive(t *testing.T) {
	const secure = "authorize = \"blob\"\n[identity]\nca = \"/ca\"\ncert = \"/cert\"\nkey = \"/key\"\n"
	const open = "insecure = true\nlisten = \":7401\"\n"
	for _, tt := range []struct {
		name, last, refused string
		alone               string
	}{
		{"a typo", secure, "zoen = \"a\"\n" + secure, ""},
		{"a typo, without identity", open, "zoen = \"a\"\n" + open, ""},
		{"a value", secure, "limits.upload = \"fast\"\n" + secure, ""},
		{"a value that is refused later", secure, "wait.find = \"-1s\"\n" + secure, ""},
		{"several", secure, "zoen = 1\nwait.fnid = \"1s\"\nunpack = 7\n" + secure, ""},
		{"a variable", secure, "zone = \"${CAPELIN_NONE}\"\n" + secure, ""},
		{"another key's value, too", secure, "zoen = 1\nzone = \"b\"\ntrackers = []\n" + secure, ""},

		{"nothing can be read", secure, "zone = \n" + secure, "what the refused configuration says of identity and authorize cannot be read"},
		{"identity is gone", secure, "zoen = 1\nauthorize = \"blob\"\n", "identity has changed in the configuration that is refused"},
		{"identity is another", secure, "zoen = 1\nauthorize = \"blob\"\n[identity]\nca = \"/ca2\"\ncert = \"/cert\"\nkey = \"/key\"\n",
			"identity has changed in the configuration that is refused"},
		{"identity is incomplete", secure, "authorize = \"blob\"\n[identity]\nca = \"/ca\"\n", "identity.cert is among what is refused"},
		{"identity names what is not there", secure, strings.Replace(secure, "/ca", "${CAPELIN_NONE}", 1),
			"identity.ca is among what is refused"},
		{"identity in a table that nobody knows", open, "[identty]\nca = \"/ca\"\ncert = \"/cert\"\nkey = \"/key\"\n" + "",
			"nobody knows identty, which may mean a key of the identity, or of who may have what"},
		{"identity in another table", open, open + "[shim]\ncert = \"/cert\"\n",
			"nobody knows shim.cert, which may mean a key of the identity, or of who may have what"},
		{"authorize is gone", "authorize = \"blob\"\n", "zoen = 1\n", "authorize has changed in the configuration that is refused"},
		{"authorize is another", open, "zoen = 1\nauthorize = \"blob\"\n" + open, "authorize has changed in the configuration that is refused"},
		{"authorize has a typo in its value", open, "authorize = \"blbo\"\n" + open, "authorize is among what is refused"},
		{"authorize has another type", open, "authorize = 1\n" + open, "authorize is among what is refused"},
		{"authorize has a typo in its key", open, "authorise = \"blob\"\n" + open,
			"nobody knows authorise, which may mean a key of the identity, or of who may have what"},
		{"insecure is gone", open, "zoen = 1\n", "insecure has changed in the configuration that is refused"},
		{"the cluster is another", open, "zoen = 1\ncluster = \"b\"\n" + open, "cluster has changed in the configuration that is refused"},
	} {
		last, refused := DefaultConfig(), DefaultConfig()
		if err := config.Parse("F", []byte(tt.last), &last); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		err := config.Parse("F", []byte(tt.refused), &refused)
		if err == nil {
			t.Errorf("%s: nothing is refused", tt.name)
		}
		use := Survive(last, refused, config.Problems(err))
		if use.Alone != tt.alone {
			t.Errorf("%s (%v): alone because %q, want %q", tt.name, err, use.Alone, tt.alone)
		}
		if use.Zone != last.Zone || use.Identity != last.Identity { // the file that is good again is compared with it
			t.Errorf("%s: %+v is not the last one", tt.name, use)
		}
		lone := use.alone()
		if err := lone.Validate(); err != nil || lone.Identity != (identity.Config{}) || lone.Authorize != "blob" || len(lone.Trackers) > 0 {
			t.Errorf("%s: alone it is %+v, %v", tt.name, lone, err)
		}
	}
	// A file that was read, and did not come up.
	last, refused := DefaultConfig(), DefaultConfig()
	refused.Zone = "b"
	if use := Survive(last, refused, nil); use.Alone != "" {
		t.Error(use.Alone)
	}
	refused.Authorize = "blob"
	if use := Survive(last, refused, nil); use.Alone == "" {
		t.Error("authorize is revived")
	}
}
