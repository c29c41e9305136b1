package storages

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// HDFS is a Hadoop cluster: two namenodes, of which one is in standby, that share their log by a directory, a datanode, and HttpFS.
type HDFS struct {
	// Namenodes are nn1, which is active after the start, and nn2.
	Namenodes [2]*Process
	Datanode  *Process
	// HttpFS is nil with Kerberos.
	HTTPFS *Process
	// User is who owns Path. With Kerberos see Kerberos.
	User, Path string

	t        TB
	dir      string
	super    string // who may do all: whoever runs this
	kerberos *Kerberos
	rpc      [2]int
}

// nameservice is what the two namenodes are together.
const nameservice = "capelin"

// StartHDFS starts a cluster that keeps everything below dir. k, if not nil, is whom it believes.
func StartHDFS(t TB, dir string, k *Kerberos) *HDFS {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatalf("%v", err)
	}
	c := &HDFS{t: t, dir: dir, super: me.Username, kerberos: k, User: "capelin", Path: "/capelin"}
	for _, sub := range []string{"conf/webapps/hdfs/WEB-INF", "conf/webapps/datanode/WEB-INF", "httpfs/temp", "httpfs/log"} {
		c.must(os.MkdirAll(filepath.Join(dir, sub), 0o750))
	}
	for name, text := range map[string]string{
		"conf/log4j.properties": "log4j.rootLogger=WARN,A\nlog4j.appender.A=org.apache.log4j.ConsoleAppender\n" +
			"log4j.appender.A.layout=org.apache.log4j.PatternLayout\nlog4j.appender.A.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n\n",
		"conf/httpfs-log4j.properties":    "log4j.rootLogger=WARN\n",
		"conf/httpfs-signature.secret":    "not-much-of-a-secret",
		"conf/hadoop-http.secret":         "not-much-of-a-secret",
		"conf/hadoop-metrics2.properties": "",
	} {
		c.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	c.format()
	for i := range c.Namenodes {
		c.Namenodes[i] = Start(t, c.command(fmt.Sprintf("nn%d", i+1), func(port int) []string {
			if c.Namenodes[i] == nil { // a new start: nobody knows its address yet
				c.rpc[i] = c.port()
				c.configure()
			}
			return []string{"org.apache.hadoop.hdfs.server.namenode.NameNode",
				fmt.Sprintf("-Ddfs.namenode.http-address.%s.nn%d=%s", nameservice, i+1, loopback(port)), fmt.Sprintf("-Ddfs.ha.namenode.id=nn%d", i+1)}
		}))
	}
	c.Datanode = Start(t, c.command("dn", func(port int) []string {
		return []string{"org.apache.hadoop.hdfs.server.datanode.DataNode", "-Ddfs.datanode.http.address=" + loopback(port)}
	}))
	if k == nil {
		c.startHTTPFS()
	}
	c.Activate(0)
	if k == nil { // otherwise it answers no questions that have no ticket, and whoever writes waits, and makes the path
		c.makePath()
	}
	return c
}

func (c *HDFS) startHTTPFS() {
	c.HTTPFS = Start(c.t, c.command("httpfs", func(port int) []string {
		home := filepath.Join(c.dir, "httpfs")
		c.must(writeXML(filepath.Join(c.dir, "conf/httpfs-site.xml"), map[string]string{
			"httpfs.http.hostname": "127.0.0.1", "httpfs.http.port": strconv.Itoa(port)}))
		return []string{"-Dhttpfs.home.dir=" + home, "-Dhttpfs.config.dir=" + filepath.Join(c.dir, "conf"), "-Dhttpfs.log.dir=" + home + "/log",
			"-Dhttpfs.temp.dir=" + home + "/temp",
			"org.apache.hadoop.fs.http.server.HttpFSServerWebServer"}
	}))
}

func (c *HDFS) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("%v", err)
	}
}

func (c *HDFS) port() int {
	p, err := freePort()
	c.must(err)
	return p
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// java returns a command line.
func (c *HDFS) java(args ...string) []string {
	line := []string{Tool(c.t, "hadoop/java"), filepath.Join(c.dir, "conf"), "-Dhadoop.log.dir=" + c.dir,
		"-Djava.util.logging.config.file=" + filepath.Join(c.dir, "conf/logging.properties")}
	if c.kerberos != nil {
		line = append(line, "-Djava.security.krb5.conf="+c.kerberos.Conf)
	}
	return append(line, args...)
}

func (c *HDFS) command(name string, args func(port int) []string) Command {
	return Command{Name: name, Dir: c.dir, Args: func(port int) []string { return c.java(args(port)...) }}
}

// run runs a command of Hadoop's to its end.
func (c *HDFS) run(args ...string) error {
	cmd := c.java(args...)
	e := exec.Command(cmd[0], cmd[1:]...)
	if c.kerberos != nil {
		e.Env = append(os.Environ(), c.kerberos.env...)
	}
	out, err := e.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// format makes the first namenode's directory, the shared one, and a copy for the second.
func (c *HDFS) format() {
	c.t.Helper()
	c.rpc = [2]int{c.port(), c.port()}
	c.configure()
	c.must(c.run("org.apache.hadoop.hdfs.server.namenode.NameNode", "-Ddfs.ha.namenode.id=nn1", "-format", "-nonInteractive"))
	c.must(os.CopyFS(filepath.Join(c.dir, "nn2"), os.DirFS(filepath.Join(c.dir, "nn1"))))
}

// configure writes the configuration, which all processes share.
func (c *HDFS) configure() {
	c.t.Helper()
	ns := "." + nameservice
	core := map[string]string{
		"fs.defaultFS":                            "hdfs://" + nameservice,
		"hadoop.tmp.dir":                          filepath.Join(c.dir, "tmp"),
		"hadoop.http.staticuser.user":             c.User,
		"hadoop.proxyuser." + c.super + ".hosts":  "*",
		"hadoop.proxyuser." + c.super + ".groups": "*",
	}
	site := map[string]string{
		"dfs.nameservices":                                     nameservice,
		"dfs.ha.namenodes" + ns:                                "nn1,nn2",
		"dfs.client.failover.proxy.provider" + ns:              "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider",
		"dfs.namenode.shared.edits.dir":                        "file://" + filepath.Join(c.dir, "shared"),
		"dfs.ha.fencing.methods":                               "shell(true)",
		"dfs.ha.tail-edits.period":                             "1s",
		"dfs.ls.limit":                                         "5", // entries of a directory in one answer
		"dfs.replication":                                      "1",
		"dfs.namenode.replication.min":                         "1",
		"dfs.datanode.data.dir":                                "file://" + filepath.Join(c.dir, "dn"),
		"dfs.datanode.address":                                 "127.0.0.1:0",
		"dfs.datanode.ipc.address":                             "127.0.0.1:0",
		"dfs.datanode.hostname":                                "127.0.0.1", // by which namenodes send clients to it
		"dfs.datanode.du.reserved":                             "0",
		"dfs.namenode.datanode.registration.ip-hostname-check": "false",
		"dfs.namenode.safemode.extension":                      "0",
		"dfs.namenode.handler.count":                           "4",
		"dfs.namenode.redundancy.considerLoad":                 "false",
	}
	for i, rpc := range c.rpc {
		nn := fmt.Sprintf("%s.nn%d", ns, i+1)
		site["dfs.namenode.rpc-address"+nn] = loopback(rpc)
		site["dfs.namenode.name.dir"+nn] = "file://" + filepath.Join(c.dir, fmt.Sprintf("nn%d", i+1))
		if c.Namenodes[i] != nil {
			site["dfs.namenode.http-address"+nn] = c.Namenodes[i].addr()
		}
	}
	if c.kerberos != nil {
		c.kerberos.configure(core, site)
	}
	c.must(writeXML(filepath.Join(c.dir, "conf/core-site.xml"), core))
	c.must(writeXML(filepath.Join(c.dir, "conf/hdfs-site.xml"), site))
}

func writeXML(path string, keys map[string]string) error {
	var s strings.Builder
	s.WriteString("<configuration>\n")
	for k, v := range keys {
		fmt.Fprintf(&s, "<property><name>%s</name><value>%s</value></property>\n", k, html.EscapeString(v))
	}
	s.WriteString("</configuration>\n")
	return os.WriteFile(path, []byte(s.String()), 0o600)
}

// Activate makes a namenode the active one, whether or not the other one lives, and waits until it takes writes.
func (c *HDFS) Activate(i int) {
	c.t.Helper()
	c.must(c.run("org.apache.hadoop.hdfs.tools.DFSHAAdmin", "-transitionToActive", "--forceactive", fmt.Sprintf("nn%d", i+1)))
}

// Standby makes the active namenode one in standby.
func (c *HDFS) Standby(i int) {
	c.t.Helper()
	c.must(c.run("org.apache.hadoop.hdfs.tools.DFSHAAdmin", "-transitionToStandby", fmt.Sprintf("nn%d", i+1)))
}

// makePath waits until the cluster can be written to, and makes Path, the user's.
func (c *HDFS) makePath() {
	c.t.Helper()
	for end := time.Now().Add(startLimit); ; {
		err := c.usable()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			c.t.Fatalf("HDFS does not begin: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.Ask(http.MethodPut, c.Path, "op=MKDIRS&permission=750")
	c.Ask(http.MethodPut, c.Path, "op=SETOWNER&owner="+c.User)
}

// usable reports what is missing before the active namenode takes writes.
func (c *HDFS) usable() error {
	for _, n := range c.Namenodes {
		status, err := Metrics(n, "Hadoop:service=NameNode,name=NameNodeStatus")
		if err != nil {
			return err
		}
		if status["State"] != "active" {
			continue
		}
		info, err := Metrics(n, "Hadoop:service=NameNode,name=NameNodeInfo")
		if err != nil {
			return err
		}
		if live, ok := info["LiveNodes"].(string); !ok || live == "{}" {
			return errors.New("no datanode")
		}
		if safe := info["Safemode"]; safe != "" {
			return fmt.Errorf("safe mode: %v", safe)
		}
		return nil
	}
	return fmt.Errorf("no namenode is active")
}

// Metrics returns what a process of Hadoop's says of itself.
func Metrics(p *Process, bean string) (map[string]any, error) {
	resp, err := client.Get(p.URL() + "/jmx?qry=" + bean)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var a struct{ Beans []map[string]any }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil || len(a.Beans) == 0 {
		return nil, fmt.Errorf("%s: %d beans, %w", bean, len(a.Beans), err)
	}
	return a.Beans[0], nil
}

// client keeps no connection.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Ask asks the active namenode as whoever may do all, and returns its answer.
func (c *HDFS) Ask(method, path, query string) string {
	c.t.Helper()
	var last string
	for _, n := range c.Namenodes {
		req, err := http.NewRequest(method, n.URL()+"/webhdfs/v1"+path+"?"+query+"&user.name="+c.super, nil)
		c.must(err)
		resp, err := client.Do(req)
		if err != nil {
			last = err.Error()
			continue
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusOK {
			return string(data)
		}
		last = string(data)
	}
	c.t.Fatalf("%s %s?%s: %s", method, path, query, last)
	return ""
}
