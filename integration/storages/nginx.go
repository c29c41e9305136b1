package storages

import (
	"fmt"
	"os"
	"path/filepath"
)

// Nginx is a web server, over a directory.
type Nginx struct {
	*Process
	Root string // what it serves below /files/, and below /plain/ without ranges
}

const nginxConfig = `daemon off;
master_process off;
user root;
pid %[1]s/nginx.pid;
error_log stderr notice;
events {}
http {
	access_log off;
	default_type application/octet-stream;
	client_body_temp_path %[1]s/tmp; proxy_temp_path %[1]s/tmp; fastcgi_temp_path %[1]s/tmp;
	uwsgi_temp_path %[1]s/tmp; scgi_temp_path %[1]s/tmp;
	server {
		listen 127.0.0.1:%[2]d;
		location /files/ { alias %[3]s/; }
		location /plain/ { alias %[3]s/; max_ranges 0; }
		location /away/ { rewrite ^/away/(.*)$ /files/$1 redirect; }
		location /members/ {
			alias %[3]s/;
			if ($http_authorization != "Bearer not-much-of-a-secret") { return 401; }
		}
		location /pages/ { try_files $uri /index.html; }
		location = /index.html { return 200 "a page for everything"; }
	}
}
`

// StartNginx starts one (Debian's package nginx-light) that keeps what it needs in dir.
func StartNginx(t TB, dir string) *Nginx {
	t.Helper()
	n := &Nginx{Root: filepath.Join(dir, "root")}
	if err := os.MkdirAll(n.Root, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	n.Process = Start(t, Command{
		Name: "nginx", Dir: dir,
		Args: func(port int) []string {
			config := filepath.Join(dir, "nginx.conf")
			if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, port, n.Root), 0o644); err != nil {
				t.Fatalf("%v", err)
			}
			return []string{"/usr/sbin/nginx", "-e", "stderr", "-p", dir, "-c", config}
		},
	})
	return n
}
