package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/origind"
)

// operations is docs/operations.md: what it has operators do is done here, to servers in processes of their own.
type operations struct {
	t     *testing.T
	dir   string
	text  string
	toml  string            // the configuration that it shows
	again *strings.Replacer // its addresses and files become those of this test
	done  []string          // headings whose commands were run
	procs map[string]*exec.Cmd
	index string // what the server of the index has in its file, beside the rest
}

func readOperations(t *testing.T) *operations {
	t.Helper()
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	o := &operations{t: t, dir: t.TempDir(), text: string(b), procs: map[string]*exec.Cmd{}}
	o.again = strings.NewReplacer(o.pairs()...)
	o.toml = o.block("Three servers, without object storage", "toml")
	t.Cleanup(func() {
		for name := range o.procs {
			o.kill(name)
		}
	})
	return o
}

// pairs are addresses and files of the document, each with what it is here.
func (o *operations) pairs() (pairs []string) {
	for i := range 4 {
		pairs = append(pairs, fmt.Sprintf("10.0.0.%d", i+1), o.addr(i))
	}
	return append(pairs, "/var/lib/capelin/server", filepath.Join(o.dir, "a", "data"),
		"/backup/capelin", filepath.Join(o.dir, "backup"), "/srv/capelin", filepath.Join(o.dir, "srv"))
}

// addr returns an address of this machine on which no other test has ports.
func (o *operations) addr(i int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 128+16*i+pid>>16%16, pid>>8%256, 1+pid%254)
}

// block returns the blocks of a language below a heading.
func (o *operations) block(heading, language string) (text string) {
	o.t.Helper()
	_, section, ok := strings.Cut(o.text, "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for ok && strings.Contains(section, "\n```"+language+"\n") {
		var block string
		_, section, _ = strings.Cut(section, "\n```"+language+"\n")
		block, section, _ = strings.Cut(section, "\n```")
		text += block + "\n"
	}
	if text == "" {
		o.t.Fatalf("the document has no %s below %q", language, heading)
	}
	return text
}

// run runs the commands below a heading.
func (o *operations) run(heading string) {
	o.t.Helper()
	o.done = append(o.done, heading)
	for line := range strings.Lines(o.block(heading, "sh")) {
		args := strings.Fields(o.again.Replace(line))
		if out, said, err := execute(o.t, o.operator(args[1:]...)...); err != nil || args[0] != "capelin" {
			o.t.Fatalf("%s: %s%v\n%s%s%s", heading, line, err, out, said, o.logs())
		}
	}
}

// operator adds a certificate to a command.
func (o *operations) operator(args ...string) []string {
	at := filepath.Join(o.dir, "admin")
	return append(args, "--ca", at+"/ca.crt", "--cert", at+"/tls.crt", "--key", at+"/tls.key")
}

func (o *operations) issue(name, roles string, more ...string) {
	o.t.Helper()
	args := []string{"ca", "issue", "--dir", o.dir + "/ca", "--role", roles, "--name", name, "--out", filepath.Join(o.dir, name)}
	if _, _, err := execute(o.t, append(args, more...)...); err != nil {
		o.t.Fatal(err)
	}
}

// start starts a server with the file of the document; more is written behind the members there.
func (o *operations) start(name string, more string) {
	o.t.Helper()
	i := int(name[0] - 'a')
	at := filepath.Join(o.dir, name)
	if _, err := os.Stat(at); err != nil {
		o.issue(name, "tracker,origin,index,gateway", "--host", o.addr(i))
	}
	text := strings.Replace(o.toml, `address = "10.0.0.1"`, fmt.Sprintf("address = %q", o.addr(i)), 1)
	text = strings.ReplaceAll(o.again.Replace(text), "/etc/capelin/pki", at)
	text = strings.Replace(text, `:7480"]`, `:7480"`+o.again.Replace(more)+"]", 1)
	if name == "a" {
		text += "\n" + o.again.Replace(o.index)
	}
	if err := os.WriteFile(at+"/server.toml", []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
	log, err := os.OpenFile(at+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(os.Args[0], "server", "--config", at+"/server.toml", "--set", "data="+at+"/data",
		"--set", "metrics="+o.addr(i)+":7501", "--set", "origin.cache.free_floor=-1.0")
	cmd.Env = append(os.Environ(), "CAPELIN_TEST_MAIN=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.procs[name] = cmd
}

func (o *operations) kill(name string) {
	cmd := o.procs[name]
	delete(o.procs, name)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// stop ends a server as systemd does.
func (o *operations) stop(name string) {
	o.t.Helper()
	cmd := o.procs[name]
	delete(o.procs, name)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		o.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		o.t.Errorf("%s ends with %v", name, err)
	}
}

// lose kills a server, and takes away what its origin has.
func (o *operations) lose(name string) {
	o.t.Helper()
	o.kill(name)
	if err := os.RemoveAll(filepath.Join(o.dir, name, "data", "origin")); err != nil {
		o.t.Fatal(err)
	}
}

func (o *operations) logs() (text string) {
	for name := range o.procs {
		b, _ := os.ReadFile(filepath.Join(o.dir, name, "log"))
		lines := strings.Split(string(b), "\n")
		text += "\n" + strings.Join(lines[max(0, len(lines)-10):], "\n")
	}
	return text
}

// makeImage makes an image in the directory image.
func (o *operations) makeImage() {
	o.t.Helper()
	img, err := random.Image(1<<20, 4)
	if err != nil {
		o.t.Fatal(err)
	}
	src, err := layout.Write(o.dir+"/image", empty.Index)
	if err == nil {
		err = src.AppendImage(img)
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// image pushes an image, or pulls it, and returns its digest.
func (o *operations) image(args ...string) string {
	o.t.Helper()
	out, _, err := execute(o.t, o.operator(append([]string{"image"}, args...)...)...)
	if err != nil {
		o.t.Fatalf("%v: %v\n%s", args, err, o.logs())
	}
	_, d, _ := strings.Cut(out, "sha256:")
	return d[:min(64, len(d))]
}

// What docs/operations.md says is done: three servers with its configuration are a ring, and its commands do what it says.
func TestOperations(t *testing.T) {
	if testing.Short() {
		t.Skip("members wait for each other in real time")
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	o := readOperations(t)
	if _, _, err := execute(t, "ca", "init", "--dir", o.dir+"/ca"); err != nil {
		t.Fatal(err)
	}
	o.issue("admin", "admin")
	for _, name := range []string{"a", "b", "c"} {
		o.start(name, "")
	}
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480") // somebody answers
	o.run("Three servers")

	o.makeImage()
	ref := func(i int) string { return o.addr(i) + ":7500/team/app:1" }
	want := o.image("push", o.dir+"/image", ref(1))

	o.start("d", `, "d=10.0.0.4:7480"`)
	o.eventually("MEMBER", "ring", "--origin", o.addr(3)+":7480")
	o.run("Add a member")
	o.run("Take a member out")
	o.kill("d")

	o.lose("c")
	o.start("c", "")
	o.eventually("a disk of c is lost", "ring", "--origin", o.addr(0)+":7480") // what it had counts until it is known to be lost
	o.run("Replace a machine, or a disk")

	o.lose("b")
	o.lose("c")
	o.start("b", "")
	o.start("c", "")
	o.eventually("(?s)\nb +up.*\nc +up.*\na disk of b is lost\na disk of c is lost\n", "ring", "--origin", o.addr(0)+":7480")
	_, said, err := execute(t, o.operator("origin", "ring", "--wait", "--origin", o.addr(0)+":7480")...)
	if err == nil || !strings.Contains(err.Error(), "capelin origin ring forget b; capelin origin ring forget c") {
		t.Errorf("two disks were lost at once, and --wait ends with %v\n%s", err, said)
	}
	o.run("`min_replicas` disks lost at once")
	o.run("Replace a machine, or a disk") // which waits until it is whole
	pulls := 0
	pullAll := func() {
		t.Helper()
		for i := range 3 {
			pulls++
			if got := o.image("pull", ref(i), "oci:"+filepath.Join(o.dir, fmt.Sprint("pulled", pulls))); got != want {
				t.Errorf("the gateway of %c has %s, want %s", 'a'+i, got, want)
			}
		}
	}
	pullAll()

	o.run("Back up")
	for _, name := range []string{"a", "b", "c"} {
		o.kill(name)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := os.RemoveAll(filepath.Join(o.dir, name, "data")); err != nil {
			t.Fatal(err)
		}
		o.start(name, "")
	}
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480")
	o.run("Three servers")
	o.run("Restore")
	pullAll()

	o.kill("a")
	o.index = o.block("Moving an index", "toml")
	o.start("a", "")
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480")
	if _, said, err := execute(t, o.operator(strings.Fields(o.again.Replace(o.block("Moving an index", "sh")))[1:]...)...); err == nil ||
		!strings.Contains(err.Error(), "--gone ") {
		t.Errorf("an index that was killed is still registered, and %v\n%s", err, said)
	} else if _, gone, _ := strings.Cut(err.Error(), "--gone "); gone != "" {
		o.again = strings.NewReplacer(append([]string{"/srv/capelin/index\n", o.dir + "/srv/index --gone " + gone + "\n"}, o.pairs()...)...)
	}
	o.run("Moving an index")
	pullAll()
	o.kill("a")
	o.index = strings.NewReplacer("[index.next]", "[index.storage]").Replace(o.index)
	o.start("a", "")
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480")
	pullAll()
	o.run("Look after the index")
	_, metrics := get(o.addr(0)+":7501", "/metrics")
	for _, name := range regexp.MustCompile("`(capelin_[a-z_]+)({backend})?").FindAllStringSubmatch(o.text, -1) {
		if name[2] != "" { // these servers have no backends
			continue
		}
		if !strings.Contains(metrics, "\n"+name[1]+"{") && !strings.Contains(metrics, "\n"+name[1]+" ") {
			t.Errorf("there is no metric %s", name[1])
		}
	}
	for section := range strings.SplitSeq(o.text, "\n## ") { // no command of the document is left out
		heading, rest, _ := strings.Cut(section, "\n")
		if strings.Contains(rest, "\n```sh\n") && !slices.Contains(o.done, heading) && heading != movingStorage { // TestOperationsStorage

			t.Errorf("what stands below %q was not run", heading)
		}
	}
}

// movingStorage is a heading.
const movingStorage = "Moving to another storage"

// Three servers with one storage, which moves: what one has written another one reads, when the first is gone for good. Buckets
// are directories here.
func TestOperationsStorage(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	o := readOperations(t)
	directory := func(heading, bucket, dir string) string {
		t.Helper()
		bucket = fmt.Sprintf("kind = \"s3\"\ns3 = { bucket = %q, prefix = \"capelin/\", region = \"eu-central-1\" }", bucket)
		table := fmt.Sprintf("kind = \"file\"\nfile = { path = %q }", filepath.Join(o.dir, dir))
		if err := os.WriteFile(filepath.Join(o.dir, dir+".toml"), []byte("[storage]\n"+table), 0o600); err != nil {
			t.Fatal(err)
		}
		text := o.block(heading, "toml")
		if !strings.Contains(text, bucket) {
			t.Fatalf("the document has no %s", bucket)
		}
		return strings.Replace(text, bucket, table, 1)
	}
	o.toml = directory("Three servers", "images", "old")
	next := directory(movingStorage, "images-2", "new")
	o.again = strings.NewReplacer(append(o.pairs(), " old.toml", " "+o.dir+"/old.toml", " new.toml", " "+o.dir+"/new.toml")...)
	if _, _, err := execute(t, "ca", "init", "--dir", o.dir+"/ca"); err != nil {
		t.Fatal(err)
	}
	o.issue("admin", "admin")
	for _, name := range []string{"a", "b", "c"} {
		o.start(name, "")
	}
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480") // somebody answers
	o.run("Three servers")
	o.makeImage()
	want := o.image("push", o.dir+"/image", o.addr(0)+":7500/team/app:1")
	all := []string{"a", "b", "c"}
	if out, said, err := execute(t, strings.Fields(o.again.Replace("origin move-backend old.toml new.toml"))...); err == nil ||
		!strings.Contains(err.Error(), "--gone a --gone b --gone c") {
		t.Errorf("it moves although no server is told: %v\n%s%s", err, out, said)
	}
	whole := o.toml
	for _, name := range all {
		o.stop(name)
		o.toml = whole + next
		o.start(name, "")
	}
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480")
	o.run("Three servers") // whole
	o.run(movingStorage)
	later := o.image("push", o.dir+"/image", o.addr(1)+":7500/team/app:2")
	for _, name := range all {
		o.stop(name)
		o.toml = strings.Replace(whole, "/old\"", "/new\"", 1)
		o.start(name, "")
	}
	if err := os.RemoveAll(filepath.Join(o.dir, "old")); err != nil {
		t.Fatal(err)
	}
	o.eventually("MEMBER", "ring", "--origin", o.addr(0)+":7480")
	o.run("Three servers")
	if got := o.image("pull", o.addr(2)+":7500/team/app:2", "oci:"+filepath.Join(o.dir, "later")); got != later {
		t.Errorf("pushed after it has moved: %s, want %s", got, later)
	}
	o.lose("a")
	for i := range 2 {
		if got := o.image("pull", o.addr(i+1)+":7500/team/app:1", "oci:"+filepath.Join(o.dir, fmt.Sprint("pulled", i))); got != want {
			t.Errorf("the gateway of %c has %s, want %s", 'b'+i, got, want)
		}
	}
}

// eventually repeats a command of an operator until it prints something, a regular expression.
func (o *operations) eventually(prints string, args ...string) {
	o.t.Helper()
	want := regexp.MustCompile(prints)
	for {
		out, said, err := execute(o.t, o.operator(append([]string{"origin"}, args...)...)...)
		if want.MatchString(out) {
			return
		}
		if o.t.Context().Err() != nil {
			o.t.Fatalf("%v: %v\n%s%s%s", args, err, out, said, o.logs())
		}
	}
}

// What contrib shows of an origin in Kubernetes is a configuration, and needs what it has.
func TestKubernetesExample(t *testing.T) {
	b, err := os.ReadFile("../../contrib/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "    listen = \":7480\"\n    [ring]\n")
	text, _, end := strings.Cut(text, "\n\n")
	if !ok || !end {
		t.Fatal("contrib/README.md has no such example")
	}
	t.Setenv("POD_IP", "10.1.2.3")
	text = "listen = \":7480\"\ninsecure = true\ntrackers = [\"dns+t:7470\"]\n[ring]\n" + text
	cfg := origind.DefaultConfig()
	if err := config.Parse("F", []byte(text), &cfg); err != nil || cfg.Ring.Address != "10.1.2.3:7480" || cfg.Ring.Static() {
		t.Errorf("%v, %+v", err, cfg.Ring)
	}
	cfg = origind.DefaultConfig()
	text = strings.Replace(text, "    address =", "    #address =", 1)
	if err := config.Parse("F", []byte(text), &cfg); err == nil || !strings.Contains(err.Error(), "ring.address: must be set") {
		t.Errorf("without ring.address: %v", err)
	}
}
