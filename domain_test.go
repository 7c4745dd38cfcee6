package roost_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
)

// TestVerbTable is "Which call in which state" of the Machines API, with the
// cells that are left open there as we chose them: y acts, n succeeds without
// effect, - is refused.
func TestVerbTable(t *testing.T) {
	states := []root.State{
		root.StateCreating, root.StateCreated, root.StateStarting, root.StateStarted, root.StateStopping, root.StateStopped,
		root.StateSuspending, root.StateSuspended, root.StateUpdating, root.StateReplacing, root.StateFailed, root.StateRestarting,
		root.StateLaunchFailed, root.StateDestroying, root.StateDestroyed,
	}
	table := map[root.Verb]string{
		root.VerbStart:   "--nn-yyy--yn---",
		root.VerbStop:    "-nyynnyy--yy---",
		root.VerbRestart: "--yy-yyy--yn---",
		root.VerbSuspend: "---y--nn-------",
		root.VerbUpdate:  "-yyyyyyy--yyy--",
		root.VerbDestroy: "-y---y-y--y-yn-",
		root.VerbExec:    "---y-----------",
		root.VerbSignal:  "---yy----------",
	}
	letters := map[byte]root.Answer{'y': root.Do, 'n': root.Noop, '-': root.Refuse}
	for verb, row := range table {
		for i, s := range states {
			got, err := root.CheckVerb(verb, s)
			if want := letters[row[i]]; got != want {
				t.Errorf("%s in %s: got answer %d, want %d", verb, s, got, want)
			}
			switch {
			case got != root.Refuse:
				if err != nil {
					t.Errorf("%s in %s: allowed, but with error %v", verb, s, err)
				}
			case s == root.StateDestroyed:
				if root.KindOf(err) != root.NotFound {
					t.Errorf("%s in %s: got %v, want kind not_found", verb, s, err)
				}
			case root.KindOf(err) != root.Precondition:
				t.Errorf("%s in %s: got %v, want kind precondition", verb, s, err)
			}
		}
	}
	// Texts that clients know.
	for _, test := range []struct {
		verb  root.Verb
		state root.State
		want  string
	}{
		{root.VerbStart, root.StateCreated, "unable to start machine from current state: 'created'"},
		{root.VerbStart, root.StateStopping, "machine still active, refusing to start"},
		{root.VerbStart, root.StateReplacing, "machine getting replaced, refusing to start"},
		{root.VerbDestroy, root.StateStarted, "unable to destroy machine from current state: 'started'"},
	} {
		if _, err := root.CheckVerb(test.verb, test.state); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s in %s: got %v, want %q in it", test.verb, test.state, err, test.want)
		}
	}
	if got, err := root.CheckVerb("dance", root.StateStarted); got != root.Refuse || err == nil {
		t.Errorf("an unknown verb: got %v, %v, want a refusal", got, err)
	}
}

func TestParseIDs(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	app := func(s string) error { _, err := root.ParseAppName(s); return err }
	org := func(s string) error { _, err := root.ParseOrgSlug(s); return err }
	network := func(s string) error { _, err := root.ParseNetworkName(s); return err }
	machine := func(s string) error { _, err := root.ParseMachineID(s); return err }
	region := func(s string) error { _, err := root.ParseRegion(s); return err }
	tests := []struct {
		name      string
		parse     func(string) error
		good, bad []string
	}{
		{"app", app, []string{"a", "my-shop", "0a", "a--b", label63}, []string{"", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", label63 + "a", "a\x00"}},
		{"org", org, []string{"personal", "acme-2"}, []string{"", "Acme", "-", "a/b", label63 + "a"}},
		{"network", network, []string{"", "default", "Net-1", label63}, []string{"1a", "-a", "a b", "a/b", "é", label63 + "a"}},
		{"machine", machine, []string{"148e1234c56789"}, []string{"", "148e1234c5678", "148e1234c567890", "148E1234c56789", "148g1234c56789", "../../../../etc"}},
		{"region", region, []string{"loc", "fra", "us-east-1"}, []string{"", "FRA", "a_b", strings.Repeat("a", 21)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, s := range test.good {
				if err := test.parse(s); err != nil {
					t.Errorf("%q: %v", s, err)
				}
			}
			for _, s := range test.bad {
				err := test.parse(s)
				if root.KindOf(err) != root.Invalid {
					t.Errorf("%q: got %v, want kind invalid", s, err)
				}
			}
			if err := test.parse(strings.Repeat("X", 100_000)); err == nil || len(err.Error()) > 300 {
				t.Errorf("a huge one: want a short error, got %.400v", err)
			}
		})
	}
	if got, _ := root.ParseNetworkName(""); got != root.DefaultNetwork {
		t.Errorf("no network name: got %q, want %q", got, root.DefaultNetwork)
	}
	id := root.MachineIDFrom([7]byte{0x14, 0x8e, 0x12, 0x34, 0xc5, 0x67, 0x89})
	if id != "148e1234c56789" {
		t.Errorf("machine id: got %s, want 148e1234c56789", id)
	}
}

// goodConfig is a config that uses most of what there is.
func goodConfig() root.Config {
	return root.Config{
		Image: "docker.io/library/debian:bookworm-slim", Env: map[string]string{"A": "b", "FLY_API_TOKEN": "x"}, Guest: root.DefaultGuest(),
		Swap: 512 * root.MiB, Restart: root.Restart{Policy: root.RestartOnFailure, MaxRetries: 3},
		Stop:  root.Stop{Signal: root.DefaultStopSignal, Timeout: root.DefaultStopTimeout},
		Files: []root.File{{GuestPath: "/etc/x", Mode: 0o600}},
		Services: []root.Service{{
			Protocol: "tcp", InternalPort: 8080, Autostop: root.AutostopSuspend, Concurrency: root.Concurrency{Type: "requests", Soft: 20, Hard: 25},
			Ports: []root.Port{{Port: 80, Handlers: []string{"http"}, ForceHTTPS: true}, {Port: 8000, End: 8100}},
		}},
	}
}

func TestConfigValidate(t *testing.T) {
	c := goodConfig()
	if err := c.Validate(); err != nil {
		t.Fatalf("a good config: %v", err)
	}
	guest := func(kind string, cpus int, memory root.Bytes) func(*root.Config) {
		return func(c *root.Config) { c.Guest = root.Guest{CPUKind: kind, CPUs: cpus, Memory: memory * root.MiB} }
	}
	service := func(f func(*root.Service)) func(*root.Config) {
		return func(c *root.Config) { f(&c.Services[0]) }
	}
	tests := []struct {
		field string // that the message names
		spoil func(*root.Config)
	}{
		{"config.image", func(c *root.Config) { c.Image = "" }},
		{"config.env", func(c *root.Config) { c.Env[""] = "x" }},
		{"config.env", func(c *root.Config) { c.Env["A=B"] = "x" }},
		{"config.env", func(c *root.Config) { c.Env["A"] = "x\x00y" }},
		{"FLY_APP_NAME", func(c *root.Config) { c.Env["FLY_APP_NAME"] = "x" }},
		{"config.guest.cpu_kind", guest("turbo", 1, 256)},
		{"config.guest.cpus", guest("shared", 3, 768)},
		{"config.guest.cpus", guest("shared", 0, 256)},
		{"config.guest.memory_mb", guest("shared", 1, 128)},
		{"config.guest.memory_mb", guest("shared", 1, 300)},
		{"config.guest.memory_mb", guest("shared", 1, 4096)},
		{"config.guest.memory_mb", guest("performance", 1, 1024)},
		{"config.guest.memory_mb", guest("performance", 2, 4608)},
		{"config.init.swap_size_mb", func(c *root.Config) { c.Swap = -1 }},
		{"config.init.swap_size_mb", func(c *root.Config) { c.Swap = 65 * root.GiB }},
		{"config.files[0].guest_path", func(c *root.Config) { c.Files[0].GuestPath = "etc/x" }},
		{"config.files[0].guest_path", func(c *root.Config) { c.Files[0].GuestPath = "/.." }},
		{"config.files[0].mode", func(c *root.Config) { c.Files[0].Mode = 0o10000 }},
		{"config.restart.policy", func(c *root.Config) { c.Restart.Policy = "sometimes" }},
		{"config.restart.max_retries", func(c *root.Config) { c.Restart.MaxRetries = -1 }},
		{"config.stop_config.signal", func(c *root.Config) { c.Stop.Signal = "SIGFUN" }},
		{"config.stop_config.timeout", func(c *root.Config) { c.Stop.Timeout = 301 * time.Second }},
		{"config.stop_config.timeout", func(c *root.Config) { c.Stop.Timeout = -1 }},
		{"config.services[0].protocol", service(func(s *root.Service) { s.Protocol = "udp" })},
		{"config.services[0].internal_port", service(func(s *root.Service) { s.InternalPort = 0 })},
		{"config.services[0].internal_port", service(func(s *root.Service) { s.InternalPort = 65536 })},
		{"config.services[0].ports[0].port", service(func(s *root.Service) { s.Ports[0].Port = 70000 })},
		{"config.services[0].ports[1].port", service(func(s *root.Service) { s.Ports[1].End = 7000 })},
		{"config.services[0].ports[0].handlers", service(func(s *root.Service) { s.Ports[0].Handlers = []string{"gopher"} })},
		{"config.services[0].ports[1].force_https", service(func(s *root.Service) { s.Ports[1].ForceHTTPS = true })},
		{"config.services[0].concurrency.type", service(func(s *root.Service) { s.Concurrency.Type = "" })},
		{"config.services[0].concurrency", service(func(s *root.Service) { s.Concurrency.Soft = 26 })},
		{"config.services[0].autostop", service(func(s *root.Service) { s.Autostop = "maybe" })},
		{"config.services[0].min_machines_running", service(func(s *root.Service) { s.MinRunning = -1 })},
		{"auto_stop_after", service(func(s *root.Service) { s.StopAfter = -1 })},
	}
	for i, test := range tests {
		t.Run(fmt.Sprint(i, " ", test.field), func(t *testing.T) {
			c := goodConfig()
			test.spoil(&c)
			err := c.Validate()
			if root.KindOf(err) != root.Invalid || !strings.Contains(root.MessageOf(err), test.field) {
				t.Errorf("got %v, want kind invalid with %q in the message", err, test.field)
			}
		})
	}
	for _, size := range []func(*root.Config){guest("shared", 8, 16384), guest("shared", 2, 256), guest("performance", 1, 2048), guest("performance", 16, 131072)} {
		c := goodConfig()
		size(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("guest %+v: %v", c.Guest, err)
		}
	}
}

// TestConfigClone changes everything in the copy and looks at the original.
func TestConfigClone(t *testing.T) {
	c := goodConfig()
	c.Metadata, c.Checks = map[string]string{"a": "b"}, map[string]root.Check{"x": {}}
	c.Process = &root.Process{Env: map[string]string{"A": "b"}}
	d := c.Clone()
	d.Env["A"], d.Metadata["a"], d.Process.Env["A"] = "changed", "changed", "changed"
	d.Services[0].Ports[0].Port, d.Services[0].InternalPort, d.Files[0].GuestPath = 1, 1, "/changed"
	delete(d.Checks, "x")
	if c.Env["A"] != "b" || c.Metadata["a"] != "b" || c.Process.Env["A"] != "b" || c.Services[0].Ports[0].Port != 80 ||
		c.Services[0].InternalPort != 8080 || c.Files[0].GuestPath != "/etc/x" || len(c.Checks) != 1 {
		t.Errorf("the original changed: %+v", c)
	}
}

func TestErrors(t *testing.T) {
	for k := root.Internal; k <= root.TooLarge; k++ {
		if got := root.ParseKind(k.String()); got != k {
			t.Errorf("kind %s reads back as %s", k, got)
		}
	}
	if root.ParseKind("nonsense") != root.Internal || root.Kind(200).String() != "internal" {
		t.Error("an unknown kind: want internal")
	}
	cause := &root.Error{Kind: root.Conflict, Code: "name_taken", Message: "name is taken", Err: io.EOF}
	err := fmt.Errorf("create app shop: %w", cause)
	if root.KindOf(err) != root.Conflict || !root.IsKind(err, root.Conflict) || root.CodeOf(err) != "name_taken" || !errors.Is(err, io.EOF) {
		t.Errorf("wrapped: got kind %s, code %q, want both kept, and the cause", root.KindOf(err), root.CodeOf(err))
	}
	if got := root.MessageOf(err); got != "name is taken" {
		t.Errorf("message: got %q, want the user's part only", got)
	}
	if got := root.MessageOf(fmt.Errorf("open /var/lib/secret: %w", io.EOF)); got != "internal error" {
		t.Errorf("message of an error without kind: got %q, want internal error", got)
	}
	if root.KindOf(io.EOF) != root.Internal || root.IsKind(nil, root.Internal) || root.CodeOf(io.EOF) != "" {
		t.Error("errors without kind: want internal, nil has none")
	}
}

func TestActiveLease(t *testing.T) {
	now := time.Unix(1000, 0)
	m := root.Machine{Lease: &root.Lease{ExpiresAt: now}}
	if m.ActiveLease(now) != nil || m.ActiveLease(now.Add(-1)) == nil || (&root.Machine{}).ActiveLease(now) != nil {
		t.Error("a lease is active until its end, not at it")
	}
}

func TestImageRef(t *testing.T) {
	i := root.Image{Registry: "docker.io", Repository: "library/debian", Tag: "12", Digest: "sha256:ab"}
	if got, want := i.Ref(), "docker.io/library/debian:12@sha256:ab"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	i.Tag, i.Digest = "", ""
	if got, want := i.Ref(), "docker.io/library/debian"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPortCovers(t *testing.T) {
	s := root.Service{Ports: []root.Port{{Port: 80}, {Port: 8000, End: 8100}}}
	for port, want := range map[int]bool{79: false, 80: true, 81: false, 7999: false, 8000: true, 8100: true, 8101: false} {
		if _, got := s.PortFor(port); got != want {
			t.Errorf("port %d: got %v, want %v", port, got, want)
		}
	}
}

func TestBytesString(t *testing.T) {
	for size, want := range map[root.Bytes]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KB", 1536 * root.KiB: "1.5 MB", 2 * root.GiB: "2.0 GB"} {
		if got := size.String(); got != want {
			t.Errorf("%d: got %s, want %s", int64(size), got, want)
		}
	}
}
