package storages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kerberos is a realm, with a KDC of Debian's krb5-kdc.
type Kerberos struct {
	*Process
	// Conf is its krb5.conf, and Keytab has the keys of all its principals.
	Conf, Keytab string
	// Principal is of a user, whose tickets are in CCache.
	Principal, CCache string

	t   TB
	dir string
	env []string
}

const realm = "CAPELIN.TEST"

// The servers' principals. All of them are on localhost.
const (
	hadoopPrincipal = "hdfs/localhost@" + realm
	httpPrincipal   = "HTTP/localhost@" + realm
)

// StartKerberos starts a KDC that keeps everything below dir.
func StartKerberos(t TB, dir string) *Kerberos {
	t.Helper()
	k := &Kerberos{t: t, dir: dir, Conf: filepath.Join(dir, "krb5.conf"), Keytab: filepath.Join(dir, "keytab"),
		Principal: "capelin@" + realm, CCache: filepath.Join(dir, "ccache")}
	k.env = []string{
		"KRB5_CONFIG=" + k.Conf, "KRB5_KDC_PROFILE=" + filepath.Join(dir, "kdc.conf"), "KRB5CCNAME=FILE:" + filepath.Join(dir, "ccache-hdfs"),
	}
	k.write(0)
	k.run("kdb5_util", "create", "-s", "-r", realm, "-P", "not-much-of-a-secret")
	for _, p := range []string{hadoopPrincipal, httpPrincipal, k.Principal} {
		k.run("kadmin.local", "-r", realm, "addprinc", "-randkey", p)
		k.run("kadmin.local", "-r", realm, "ktadd", "-norandkey", "-k", k.Keytab, p)
	}
	kdc := k.tool("krb5kdc")
	k.Process = Start(t, Command{Name: "kdc", Dir: dir, Env: k.env, Args: func(port int) []string {
		k.write(port)
		return []string{kdc, "-n", "-r", realm}
	}})
	k.run("kinit", "-k", "-t", k.Keytab, hadoopPrincipal)
	k.run("kinit", "-k", "-t", k.Keytab, "-c", k.CCache, k.Principal)
	return k
}

// write writes the configuration of a KDC at that port.
func (k *Kerberos) write(port int) {
	k.t.Helper()
	for name, text := range map[string]string{
		"krb5.conf": fmt.Sprintf("[libdefaults]\ndefault_realm = %[1]s\ndns_lookup_kdc = false\ndns_lookup_realm = false\nrdns = false\n"+
			"udp_preference_limit = 1\n[realms]\n%[1]s = {\nkdc = 127.0.0.1:%[2]d\n}\n", realm, port),
		"kdc.conf": fmt.Sprintf("[kdcdefaults]\nkdc_listen = \"\"\nkdc_tcp_listen = 127.0.0.1:%[2]d\n[realms]\n%[1]s = {\n"+
			"database_name = %[3]s/principal\nkey_stash_file = %[3]s/stash\nacl_file = %[3]s/acl\nmax_life = 1h\n}\n", realm, port, k.dir),
	} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
			k.t.Fatalf("%v", err)
		}
	}
}

// tool returns the path of a program that may be in sbin.
func (k *Kerberos) tool(name string) string {
	k.t.Helper()
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin"} {
		if path := filepath.Join(dir, name); executable(path) {
			return path
		}
	}
	k.t.Fatalf("there is no %s: make prepare installs Debian's krb5-kdc, krb5-admin-server and krb5-user", name)
	return ""
}

func (k *Kerberos) run(name string, args ...string) {
	k.t.Helper()
	cmd := exec.Command(k.tool(name), args...)
	cmd.Env = append(os.Environ(), k.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		k.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// configure makes Hadoop's daemons believe the KDC, and nobody else.
func (k *Kerberos) configure(core, site map[string]string) {
	core["hadoop.security.authentication"] = "kerberos"
	core["hadoop.security.authorization"] = "true"
	site["ignore.secure.ports.for.testing"] = "true"
	site["dfs.block.access.token.enable"] = "true"
	site["dfs.permissions.enabled"] = "false"
	for _, daemon := range []string{"namenode", "datanode"} {
		site["dfs."+daemon+".kerberos.principal"] = hadoopPrincipal
		site["dfs."+daemon+".keytab.file"] = k.Keytab
	}
	core["hadoop.http.authentication.type"] = "kerberos"
	core["hadoop.http.authentication.kerberos.principal"] = httpPrincipal
	core["hadoop.http.authentication.kerberos.keytab"] = k.Keytab
	site["dfs.web.authentication.kerberos.principal"] = httpPrincipal
	site["dfs.web.authentication.kerberos.keytab"] = k.Keytab
}
