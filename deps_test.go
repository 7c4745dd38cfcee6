package roost_test

import (
	"encoding/json"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// module is the import path of this module.
const module = "github.com/roost-run/roost"

// everywhere lists what any package may import besides the standard library.
var everywhere = []string{
	module, module + "/internal/metrics", module + "/internal/atomicfile", module + "/internal/ipc",
	"golang.org/x/sync/errgroup", "golang.org/x/sync/singleflight", "golang.org/x/sync/semaphore",
	"golang.org/x/sys/unix",
}

// arrows says which packages of this module a package may import, as folders
// below internal/ unless they begin with a slash (then below the module). A
// trailing /... takes in sub-packages. The reason is the table of packages in
// docs/ARCHITECTURE.md; an arrow that is not here fails the build.
var arrows = map[string][]string{
	"/":           {},
	"/machines":   {},
	"/serverless": {"/machines"},
	"/cmd/roost":  {"cli", "supervisor", "controlplane", "edge", "builder", "config"},

	"supervisor":   {"config", "orders", "runtime/...", "network", "machinelog"},
	"controlplane": {"config", "certs/...", "orders", "etcd", "state", "catalog/...", "control", "placement", "auth", "api/...", "wire", "agent", "health/report", "image", "registry", "network", "machinelog", "builder", "seal", "/machines"},
	"edge":         {"config", "orders", "api/origin", "catalog/...", "certs/...", "proxy/...", "health/...", "machinelog", "nameserver", "network"},

	"atomicfile": {},
	"ipc":        {},
	"patience":   {},
	"loopback":   {},
	"orders":     {},
	"config":     {},
	"doctor":     {"config", "runtime/...", "network"},

	"etcd":          {},
	"etcd/etcdtest": {"etcd"},
	"state":         {},
	"catalog":       {},
	"catalog/feed":  {"catalog"},

	"seal":      {},
	"control":   {"state", "certs", "catalog", "placement", "auth", "orders", "seal", "rollout"},
	"placement": {},
	"rollout":   {},
	"auth":      {},
	"wire":      {"/machines"},

	"api":          {"api/...", "control", "catalog", "auth", "wire", "/machines"},
	"api/origin":   {"orders"},
	"api/route":    {"auth", "wire"},
	"api/machines": {"orders", "api/...", "control", "catalog", "auth", "wire", "/machines"},
	"api/roost":    {"orders", "api/...", "control", "catalog", "auth", "wire", "/machines", "client", "buildcontext", "appconfig"},

	"agent":                       {"config", "orders", "state", "catalog", "health/report", "runtime/...", "image", "network", "machinelog"},
	"runtime":                     {},
	"runtime/runc":                {"runtime", "runtime/cgroup", "runtime/bundle", "runtime/swapon"},
	"runtime/cgroup":              {"runtime"},
	"runtime/swap":                {"config", "atomicfile"},
	"runtime/swapon":              {"atomicfile"},
	"runtime/bundle":              {"runtime", "runtime/cgroup"},
	"runtime/runtimetest":         {"runtime", "runtime/...", "patience"},
	"runtime/runtimetest/payload": {},
	"image":                       {},
	"image/imagetest":             {},
	"network":                     {},
	"machinelog":                  {},

	"proxy":            {"catalog", "certs", "health", "proxy/..."},
	"proxy/route":      {},
	"proxy/statics":    {"proxy/route"},
	"proxy/balance":    {"proxy/route"},
	"proxy/replay":     {},
	"proxy/load":       {},
	"proxy/rawtest":    {"patience"},
	"proxy/wake":       {},
	"proxy/autostop":   {"proxy/balance", "proxy/load"},
	"health":           {},
	"health/report":    {},
	"nameserver":       {"catalog"},
	"certs":            {},
	"certs/issue":      {"certs", "state", "seal"},
	"certs/serve":      {"certs"},
	"certs/pebbletest": {},
	"metrics":          {},

	"registry":         {"image", "auth"},
	"buildcontext":     {},
	"builder":          {"builder/...", "buildcontext", "image", "config", "network", "runtime/..."},
	"builder/buildkit": {},
	"builder/gobuild":  {"image"},
	"client":           {"buildcontext", "/machines"},
	"appconfig":        {"/machines"},
	"cli":              {"cli/term", "client", "appconfig", "launch", "/machines", "config", "doctor"},
	"cli/term":         {},
	"launch":           {},
	"/examples/django": {},
	"/examples/store":  {"/serverless", "/machines"},
	"/e2e/instance":    {"/machines"},
	"/e2e/suite":       {"/e2e/instance"},
	"/e2e/story":       {"/e2e/instance", "/e2e/suite", "/machines"},
	"/e2e/deploy":      {"/e2e/instance", "/e2e/suite", "/machines"},
	"/e2e/django":      {"/e2e/instance", "/e2e/suite", "/machines"},
	"/e2e/demo":        {"/e2e/instance", "/e2e/story", "/e2e/django"},
	"/e2e/real":        {"/e2e/instance", "/e2e/suite", "/machines"},
	"/e2e/real/probe":  {},
	"/e2e/scripts":     {"/e2e/instance", "/e2e/suite", "/machines"},
	"/e2e/compat":      {"/e2e/instance", "/e2e/suite", "/machines"},
	"/e2e/bench":       {"/e2e/instance", "/machines"},
	"/e2e/bench/app":   {},
	"/e2e/vm":          {"/e2e/instance", "/machines"},
}

// libraries that only the named packages may import: the package that owns a
// library hides it from the others.
var owned = map[string][]string{
	"go.etcd.io/etcd/server":           {"etcd", "etcd/etcdtest"},
	"go.etcd.io/etcd/client":           {"etcd", "etcd/etcdtest", "state", "controlplane"},
	"github.com/containerd/containerd": {"image", "builder", "builder/buildkit", "builder/gobuild", "registry", "runtime/bundle"},
	"github.com/moby/buildkit":         {"builder/buildkit", "cli"},
	"github.com/containerd/go-runc":    {"runtime/runc", "runtime/swap", "supervisor"},
	"github.com/vishvananda/netlink":   {"network"},
	"github.com/google/nftables":       {"network"},
	"github.com/coreos/go-systemd":     {"supervisor"},
	"github.com/miekg/dns":             {"nameserver", "certs/pebbletest"},
	"charm.land/huh":                   {"cli/term"},
	"github.com/spf13/cobra":           {"cli"},
	"github.com/caddyserver/certmagic": {"certs/issue"},
	"github.com/mholt/acmez":           {"certs/issue"},
	"modernc.org/sqlite":               {"/examples/store"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

// TestArrows keeps the direction of dependencies: every package stands in the
// table, and imports nothing that its row does not name.
func TestArrows(t *testing.T) {
	for _, p := range listPackages(t) {
		name := short(p.ImportPath)
		allowed, known := arrows[name]
		if !known {
			t.Errorf("%s is not in the table of packages: add its row here and in docs/ARCHITECTURE.md", name)
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module) && !slices.Contains(everywhere, imp) && !matchesAny(short(imp), allowed) {
				t.Errorf("%s imports %s, which its row does not allow", name, short(imp))
			}
			for lib, owners := range owned {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(owners, name) {
					t.Errorf("%s imports %s, which belongs to %v", name, imp, owners)
				}
			}
			if (name == "/" || name == "/machines") && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s imports %s, but takes the standard library only", name, imp)
			}
		}
	}
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Standard", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages: something is wrong with this test", len(pkgs))
	}
	return pkgs
}

// short returns "state" for internal/state, "/machines" for a public package
// and "/" for the root.
func short(importPath string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
	if internal, ok := strings.CutPrefix(rest, "internal/"); ok {
		return internal
	}
	return "/" + rest
}

func matchesAny(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if tree, ok := strings.CutSuffix(p, "/..."); ok {
			return name == tree || strings.HasPrefix(name, tree+"/")
		}
		return name == path.Clean(p)
	})
}
