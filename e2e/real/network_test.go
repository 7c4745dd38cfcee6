package real

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// lookup resolves a name inside a machine of an app.
func lookup(t *testing.T, app, name string) answer {
	t.Helper()
	return get(t, app, "/lookup?name="+url.QueryEscape(name))
}

// addresses are a machine's own, by the name server.
func addresses(t *testing.T, app string, m *machines.Machine) (four, six string) {
	t.Helper()
	a := at(t, app, m.ID, "/lookup?name="+m.ID+".vm."+app+".internal")
	if a.StatusCode != http.StatusOK {
		t.Fatalf("%s does not find itself: %d %s", m.ID, a.StatusCode, a.Text)
	}
	for field := range strings.FieldsSeq(a.Text) {
		ip, err := netip.ParseAddr(field)
		if err != nil {
			t.Fatal(err)
		}
		if ip.Is4() {
			four = field
		} else {
			six = field
		}
	}
	if four == "" || six != m.PrivateIP {
		t.Fatalf("addresses of %s: got %q, want IPv4 and %s", m.ID, a.Text, m.PrivateIP)
	}
	return four, six
}

// dials tries a connection from one machine and says how it went.
func dials(t *testing.T, app, from, network, to string) answer {
	t.Helper()
	return at(t, app, from, "/dial?"+url.Values{"net": {network}, "addr": {to}}.Encode())
}

func TestNames(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	a, b := start(t, app, web()), start(t, app, web())
	eventually(t, func() string {
		got := lookup(t, app, app+".internal")
		if got.StatusCode != 200 || len(strings.Fields(got.Text)) != 4 || !strings.Contains(got.Text, a.PrivateIP) || !strings.Contains(got.Text, b.PrivateIP) {
			return fmt.Sprintf("%s.internal is %q, want A and AAAA of two machines", app, got.Text)
		}
		return ""
	})
	addresses(t, app, a)
	four, _ := addresses(t, app, b)
	if got := at(t, app, a.ID, "/reverse?ip="+four); strings.TrimSpace(got.Text) != b.ID+".vm."+app+".internal." {
		t.Errorf("reverse of %s: got %q", four, got.Text)
	}
	for _, unknown := range []string{"no-such-app.internal", "x.y.z." + app + ".internal", "_nothing.internal"} {
		if got := lookup(t, app, unknown); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got %d %q, want no such name", unknown, got.StatusCode, got.Text)
		}
	}
	// Suspended machines stay, stopped ones go.
	want(t, admin().Suspend(t.Context(), app, b.ID))
	await(t, app, b.ID, machines.StateSuspended)
	wantText(t, at(t, app, a.ID, "/lookup?name="+app+".internal").Text, b.PrivateIP)
	want(t, admin().Stop(t.Context(), app, b.ID, machines.StopRequest{}))
	await(t, app, b.ID, machines.StateStopped)
	eventually(t, func() string {
		if got := at(t, app, a.ID, "/lookup?name="+app+".internal"); strings.Contains(got.Text, b.PrivateIP) {
			return "a stopped machine is still in " + got.Text
		}
		return ""
	})
}

// resolverPatience is when a resolver's own time is up: who never waits so long
// was always answered.
const resolverPatience = 5 * time.Second

// TestPublicNamesFailFast: with or without a way out, nobody waits 5 s.
func TestPublicNamesFailFast(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, web())
	get(t, app, "/").echo(t)
	timed := func(path string) (answer, time.Duration) {
		began := time.Now()
		a := get(t, app, path)
		return a, time.Since(began)
	}
	for _, ip := range []string{"::", "::1", "10.1.2.3", "192.168.0.1", "172.19.0.1", "fe80::1", "127.0.0.9", "fd00::9"} {
		if a, took := timed("/reverse?ip=" + url.QueryEscape(ip)); took >= resolverPatience {
			t.Errorf("reverse of %s: took %s: %s", ip, took, a.Text)
		}
	}
	timed("/lookup?name=www.example.com") // may have to find out that nobody answers
	for range 3 {
		if a, took := timed("/lookup?name=www.example.com"); took >= resolverPatience {
			t.Errorf("www.example.com: took %s: %d %s", took, a.StatusCode, a.Text)
		}
	}
}

// TestPrivateNetwork: machines of one network reach each other by every
// address, those of others and the host's own services they do not.
func TestPrivateNetwork(t *testing.T) {
	t.Parallel()
	if _, err := in.CLI(t.Context(), "org", "create", "neighbours"); err != nil {
		t.Fatal(err)
	}
	type member struct {
		app       string
		m         *machines.Machine
		four, six string
	}
	join := func(app string) member {
		m := start(t, app, web())
		p := member{app: app, m: m}
		p.four, p.six = addresses(t, app, m)
		return p
	}
	home := newApp(t)
	first, second := join(home), join(home)
	sibling := join(newApp(t)) // another app of the same network
	apart := join(newApp(t, machines.CreateAppRequest{OrgSlug: "personal", Network: "apart"}))
	foreign := join(newApp(t, machines.CreateAppRequest{OrgSlug: "neighbours"}))

	var wg sync.WaitGroup
	defer wg.Wait()
	probe := func(from, to member, reachable bool) {
		for network, addr := range map[string]string{"tcp4": to.four, "tcp6": to.six} {
			wg.Go(func() {
				a := dials(t, from.app, from.m.ID, network, net.JoinHostPort(addr, "8080"))
				if got := a.StatusCode == http.StatusOK; got != reachable {
					t.Errorf("%s of app %s to %s of app %s by %s: reachable %v, want %v (%s)", from.m.ID, from.app, to.m.ID, to.app, network, got, reachable, a.Text)
				}
			})
		}
	}
	all := []member{first, second, sibling, apart, foreign}
	group := map[string]int{first.app: 1, sibling.app: 1, apart.app: 2, foreign.app: 3}
	for _, from := range all {
		for _, to := range all {
			if from != to {
				probe(from, to, group[from.app] == group[to.app])
			}
		}
	}

	// Names of other networks do not exist.
	for _, other := range []member{apart, foreign} {
		if got := lookup(t, home, other.app+".internal"); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s sees %s.internal: %s", home, other.app, got.Text)
		}
	}
	host, err := net.Listen("tcp", "0.0.0.0:0")
	want(t, err)
	t.Cleanup(func() { _ = host.Close() })
	_, port, err := net.SplitHostPort(host.Addr().String())
	want(t, err)
	var closed []string
	ifaces, err := net.InterfaceAddrs()
	want(t, err)
	for _, a := range ifaces {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			closed = append(closed, net.JoinHostPort(ip.IP.String(), port))
		}
	}
	for _, gateway := range []string{"172.19.0.1", "fdaa::3"} {
		for _, p := range []string{"22", "80", "443", "8080", port, in.API[strings.LastIndex(in.API, ":")+1:], in.Edge[strings.LastIndex(in.Edge, ":")+1:]} {
			closed = append(closed, net.JoinHostPort(gateway, p))
		}
	}
	for _, addr := range closed {
		wg.Go(func() {
			if a := dials(t, home, first.m.ID, "tcp", addr); a.StatusCode == http.StatusOK {
				t.Errorf("a machine reaches %s of the host", addr)
			}
		})
	}
	for _, path := range []string{in.Run() + "/supervisor.sock", in.Run() + "/control.sock", "/run/roost/supervisor.sock", "/.fly/../run/control.sock"} {
		if a := dials(t, home, first.m.ID, "unix", path); a.StatusCode == http.StatusOK {
			t.Errorf("a machine reaches the socket %s", path)
		}
	}
}

// TestFirstPacketWakes: a suspended machine answers the connection that its
// neighbour opens.
func TestFirstPacketWakes(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	at(t, app, b, "/").echo(t)
	for _, target := range []string{"", b + ".vm." + app + ".internal", ""} {
		m, err := admin().Get(t.Context(), app, b)
		want(t, err)
		if target == "" {
			target, _ = addresses(t, app, m)
		}
		want(t, admin().Suspend(t.Context(), app, b))
		await(t, app, b, machines.StateSuspended)
		before := starts(t, app, b)
		got := at(t, app, a, "/fetch?url="+url.QueryEscape("http://"+target+":8080/hello"))
		if got.StatusCode != http.StatusOK || !strings.Contains(got.Text, b) {
			t.Fatalf("through %s: %d %s; %v", target, got.StatusCode, got.Text, history(t, app, b))
		}
		await(t, app, b, machines.StateStarted)
		if n := starts(t, app, b) - before; n != 1 {
			t.Errorf("through %s: %d starts, want 1: %v", target, n, history(t, app, b))
		}
	}
}

// TestOwnAPI: what a machine may do through /.fly/api, and what it may not.
func TestOwnAPI(t *testing.T) {
	t.Parallel()
	app, other := newApp(t), newApp(t)
	m, sibling := start(t, app, web()), start(t, app, web())
	self := func(method, path, body string) answer {
		return request(t, method, app, "/self?path="+url.QueryEscape(path), strings.NewReader(body), "Fly-Force-Instance-Id", m.ID)
	}
	machine := "/v1/apps/" + app + "/machines/"
	for _, test := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"GET", "/v1/apps/" + app + "/machines", "", 200, m.ID},
		{"GET", machine + m.ID, "", 200, m.ID},
		{"GET", machine + sibling.ID, "", 200, sibling.ID},
		{"GET", "/v1/apps/" + other, "", 403, "is for app " + app},
		{"POST", "/v1/apps/" + app + "/machines", `{"config":{"image":"` + probe + `"}}`, 403, "use a token of scope"},
		{"POST", machine + sibling.ID + "/stop", "", 403, "to itself only"},
		{"POST", machine + sibling.ID + "/exec", `{"command":["/app","env"]}`, 403, "use a token of scope"},
		{"DELETE", machine + m.ID, "", 403, "use a token of scope"},
		{"GET", "/v1/nonsense", "", 404, "404 page not found"},
	} {
		a := self(test.method, test.path, test.body)
		if a.StatusCode != test.status || !strings.Contains(a.Text, test.text) {
			t.Errorf("%s %s: got %d %.300s, want %d with %q", test.method, test.path, a.StatusCode, a.Text, test.status, test.text)
		}
	}
	// It may put itself to sleep. The answer may or may not get out before.
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+app+".localhost/self?path="+url.QueryEscape(machine+m.ID+"/suspend"), nil)
		if err == nil {
			req.Header.Set("Fly-Force-Instance-Id", m.ID)
			if resp, err := transport.RoundTrip(req); err == nil {
				_ = resp.Body.Close()
			}
		}
	}()
	eventually(t, func() string {
		for _, e := range history(t, app, m.ID) {
			if strings.HasPrefix(e, "suspend/suspended/") {
				return ""
			}
		}
		return "it has not suspended itself"
	})
}

// TestInternalAPI: the API at _api.internal:4280 wants a token.
func TestInternalAPI(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, web())
	fetch := func(token string) answer {
		return get(t, app, "/fetch?"+url.Values{"url": {"http://_api.internal:4280/v1/apps/" + app + "/machines"}, "token": {token}}.Encode())
	}
	if a := fetch(""); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("without token: got %d, want 401: %s", a.StatusCode, a.Text)
	}
	if a := fetch(in.Token); a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Text, "[") {
		t.Errorf("with token: got %d %.200s", a.StatusCode, a.Text)
	}
	for _, addr := range []string{"172.19.0.1:4280", "[fdaa::3]:4280"} {
		if a := get(t, app, "/dial?net=tcp&addr="+url.QueryEscape(addr)); a.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", addr, a.Text)
		}
	}
}

// TestBusy: work without a request keeps a machine awake as long as it says.
func TestBusy(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Services[0].Autostop = machines.AutostopSuspend
	c.Services[0].AutoStopAfter = new(machines.Duration(300 * time.Millisecond))
	m := launch(t, app, c)
	if a := request(t, http.MethodPut, app, "/self?path="+url.QueryEscape("/.fly/busy?ttl=1h"), nil); a.StatusCode != http.StatusOK {
		t.Fatalf("busy: %d %s", a.StatusCode, a.Text)
	}
	busy := time.Now()
	if err := instance.Pause(t.Context(), 3*time.Second); err != nil { // ten times its idle time
		t.Fatal(err)
	}
	still := time.Now()
	if a := request(t, http.MethodDelete, app, "/self?path=/.fly/busy", nil); a.StatusCode != http.StatusOK {
		t.Fatalf("not busy any more: %d %s", a.StatusCode, a.Text)
	}
	awaitSleepAfter(t, app, m.ID, still)
	wantAwake(t, app, m.ID, busy.UnixMilli(), still.UnixMilli())
}

// awaitSleepAfter waits until it is recorded that a machine was suspended after
// a moment; then what happened before is recorded too. Its state alone may be
// that of an earlier sleep: a wake is recorded after its answer.
func awaitSleepAfter(t *testing.T, app, id string, moment time.Time) {
	t.Helper()
	eventually(t, func() string {
		list, err := admin().Events(t.Context(), app, id, 50)
		want(t, err)
		for _, e := range list {
			if e.Type == "suspend" && e.Status == string(machines.StateSuspended) && e.Timestamp >= moment.UnixMilli() {
				return ""
			}
		}
		return fmt.Sprintf("it has not fallen asleep: %v", history(t, app, id))
	})
}
