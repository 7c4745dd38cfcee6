package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

// The load of one measurement, and how often each proxy has its turn.
const (
	proxyClients = 32
	proxyTime    = 4 * time.Second
	proxyRounds  = 3
)

// peer is a proxy that is measured.
type peer struct {
	name, version string
	addr          string
	inRouter      bool // listens in the router's namespace
	pids          []process
}

// proxying measures plain keep-alive traffic through the edge, HAProxy and
// nginx, to the same machine, with the same headers added and an access log
// written to a file. The peers and their clients run in the router's
// namespace, from where the machine can be reached; the edge and its client
// talk over the host's loopback.
func (w *world) proxying(ctx context.Context) (err error) {
	for _, program := range []string{"wrk", "haproxy", "nginx"} {
		if _, err := exec.LookPath(program); err != nil {
			w.report.note("Proxying was not measured against HAProxy and nginx: " + program + " is not installed (apt-get install --no-install-recommends wrk haproxy nginx-light).")
			return nil
		}
	}
	const app = "plain"
	m, err := w.run(ctx, app, web(helloImage))
	if err != nil {
		return err
	}
	s, err := w.slot(ctx, m)
	if err != nil {
		return err
	}
	edge, err := w.PID(ctx, "edge")
	if err != nil {
		return err
	}
	peers := []*peer{{name: "roost", version: "Roost", addr: w.Edge, pids: []process{{edge, "edge"}}}}
	backend := net.JoinHostPort(s.Running.IPv4, "8080")
	for _, start := range []func(context.Context, string) (*peer, *exec.Cmd, error){w.haproxy, w.nginx} {
		p, cmd, err := start(ctx, backend)
		if err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, cmd.Process.Signal(os.Interrupt))
			_ = cmd.Wait() // it was asked to end
		}()
		if err := inNamespace(w.router(), func() error {
			c, err := connect(ctx, p.addr)
			if err != nil {
				return err
			}
			return c.Close()
		}); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		children, err := childrenOf()
		if err != nil {
			return err
		}
		p.pids = []process{{cmd.Process.Pid, p.name}}
		for _, c := range children[cmd.Process.Pid] {
			p.pids = append(p.pids, process{c, p.name})
		}
		peers = append(peers, p)
	}
	rows := map[string][]proxyRow{}
	for round := range proxyRounds + 1 {
		for _, p := range peers {
			duration := proxyTime
			if round == 0 {
				duration = time.Second // warm up
			}
			r, err := w.load(ctx, p, app+".localhost", duration)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if round > 0 {
				rows[p.name] = append(rows[p.name], r)
			}
		}
	}
	for _, p := range peers { // the round with the median throughput
		list := rows[p.name]
		slices.SortFunc(list, func(a, b proxyRow) int { return int(a.rate - b.rate) })
		w.report.proxies = append(w.report.proxies, list[len(list)/2])
	}
	ours, best := w.report.proxies[0], w.report.proxies[1]
	for _, p := range w.report.proxies[2:] {
		if p.cpu < best.cpu {
			best = p
		}
	}
	w.report.against("HTTP/1.1 proxying: CPU per request, against the best peer", ours.cpu, best.cpu,
		fmt.Sprintf("%.0f requests/s against %.0f (%s)", ours.rate, best.rate, best.version))
	w.report.note(fmt.Sprintf("Proxying: wrk with %d connections, %d rounds of %s in turns, the round of median throughput; CPU is the proxy's own processes'.", proxyClients, proxyRounds, proxyTime))
	return w.api.DeleteApp(ctx, app, true)
}

var (
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkCount    = regexp.MustCompile(`(\d+) requests in`)
	wrkQuantile = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([\d.]+[a-z]+)`)
)

func (w *world) load(ctx context.Context, p *peer, host string, d time.Duration) (r proxyRow, err error) {
	r = proxyRow{name: p.name, version: p.version}
	before, err := usedCPU(p.pids)
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, "wrk", "--latency", "-t", "1", "-c", strconv.Itoa(proxyClients), "-d", d.String(), "-H", "Host: "+host, "http://"+p.addr+"/")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := cmd.Start
	if p.inRouter {
		begin = func() error { return inNamespace(w.router(), cmd.Start) }
	}
	if err := begin(); err != nil {
		return r, err
	}
	if err := cmd.Wait(); err != nil {
		return r, fmt.Errorf("wrk: %w: %s", err, out.String())
	}
	after, err := usedCPU(p.pids)
	if err != nil {
		return r, err
	}
	text := out.String()
	if strings.Contains(text, "Non-2xx") || strings.Contains(text, "Socket errors") {
		return r, fmt.Errorf("not every request was answered well:\n%s", text)
	}
	rate, count := wrkRate.FindStringSubmatch(text), wrkCount.FindStringSubmatch(text)
	quantiles := wrkQuantile.FindAllStringSubmatch(text, -1)
	if rate == nil || count == nil || len(quantiles) != 2 {
		return r, fmt.Errorf("wrk said:\n%s", text)
	}
	requests, err1 := strconv.ParseInt(count[1], 10, 64)
	var err2, err3, err4 error
	r.rate, err2 = strconv.ParseFloat(rate[1], 64)
	r.p50, err3 = time.ParseDuration(quantiles[0][2])
	r.p99, err4 = time.ParseDuration(quantiles[1][2])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return r, err
	}
	var used time.Duration
	for i := range after {
		used += after[i] - before[i]
	}
	r.cpu = used / time.Duration(max(1, requests))
	return r, instance.Pause(ctx, 200*time.Millisecond)
}

// startPeer starts a proxy in the router's namespace.
func (w *world) startPeer(name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(w.Dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(name, args...) // ends after the measurement, by signal
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, inNamespace(w.router(), cmd.Start)
}

const haproxyConfig = `
global
	log stdout format raw local0
	maxconn 4096
defaults
	mode http
	log global
	option httplog
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	http-reuse always
frontend in
	bind %[1]s
	unique-id-format %%{+X}o\ %%ci%%cp%%Ts%%rt
	http-request set-header fly-request-id %%[unique-id]
	http-request set-header fly-client-ip %%[src]
	http-request set-header x-forwarded-for %%[src]
	http-request set-header x-forwarded-proto http
	http-request set-header x-forwarded-ssl off
	http-request set-header x-forwarded-port 80
	http-request set-header fly-forwarded-port 80
	http-request set-header fly-forwarded-proto http
	http-request set-header fly-forwarded-ssl off
	http-request set-header fly-region loc
	http-request set-header x-request-start t=%%Ts
	http-request set-header via 1.1\ haproxy
	http-response set-header server haproxy
	http-response set-header via 1.1\ haproxy
	http-response set-header fly-request-id %%[unique-id]
	default_backend machine
backend machine
	server one %[2]s
`

const nginxConfig = `
daemon off;
user root root; # its files are in a directory of root's
worker_processes auto;
pid %[3]s/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log %[3]s/nginx.access.log combined;
	client_body_temp_path %[3]s/nginx.body;
	proxy_temp_path %[3]s/nginx.proxy;
	fastcgi_temp_path %[3]s/nginx.fastcgi;
	uwsgi_temp_path %[3]s/nginx.uwsgi;
	scgi_temp_path %[3]s/nginx.scgi;
	keepalive_requests 10000000;
	upstream machine { server %[2]s; keepalive 64; keepalive_requests 10000000; }
	server {
		listen %[1]s;
		location / {
			proxy_pass http://machine;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header fly-request-id $request_id;
			proxy_set_header fly-client-ip $remote_addr;
			proxy_set_header x-forwarded-for $remote_addr;
			proxy_set_header x-forwarded-proto http;
			proxy_set_header x-forwarded-ssl off;
			proxy_set_header x-forwarded-port 80;
			proxy_set_header fly-forwarded-port 80;
			proxy_set_header fly-forwarded-proto http;
			proxy_set_header fly-forwarded-ssl off;
			proxy_set_header fly-region loc;
			proxy_set_header x-request-start "t=$msec";
			proxy_set_header via "1.1 nginx";
			add_header via "1.1 nginx";
			add_header fly-request-id $request_id;
		}
	}
}
`

func (w *world) haproxy(ctx context.Context, backend string) (*peer, *exec.Cmd, error) {
	p := &peer{name: "haproxy", addr: "127.0.0.1:18081", inRouter: true, version: "HAProxy " + firstMatch(ctx, `version (\S+)`, "haproxy", "-v")}
	file := filepath.Join(w.Dir, "haproxy.cfg")
	if err := os.WriteFile(file, fmt.Appendf(nil, haproxyConfig, p.addr, backend), 0o600); err != nil {
		return nil, nil, err
	}
	cmd, err := w.startPeer("haproxy", "-db", "-f", file)
	return p, cmd, err
}

func (w *world) nginx(ctx context.Context, backend string) (*peer, *exec.Cmd, error) {
	p := &peer{name: "nginx", addr: "127.0.0.1:18082", inRouter: true, version: "nginx " + firstMatch(ctx, `nginx/(\S+)`, "nginx", "-v")}
	file := filepath.Join(w.Dir, "nginx.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, nginxConfig, p.addr, backend, w.Dir), 0o600); err != nil {
		return nil, nil, err
	}
	cmd, err := w.startPeer("nginx", "-c", file)
	return p, cmd, err
}

func firstMatch(ctx context.Context, pattern, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	m := regexp.MustCompile(pattern).FindSubmatch(out)
	if err != nil || m == nil {
		return "(unknown version)"
	}
	return string(m[1])
}
