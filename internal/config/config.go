// Package config is what an operator can set: flags beat environment, which
// beats the file, which beats the defaults, all checked together into one
// struct. The server process loads it once and hands the result to its
// children, so that all of them agree. It opens no files but its own.
package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	root "github.com/roost-run/roost"
)

// Config is a checked configuration. Its zero value is not one: see Default.
type Config struct {
	Data   string      // durable state: "/var/lib/roost"
	Run    string      // sockets, namespaces, mounts: "/run/roost"; gone after a reboot
	Domain string      // apps answer at <app>.<Domain>: "localhost"
	Region root.Region // "loc"

	Listen []Listen // the edge's public addresses
	API    string   // "127.0.0.1:4280"; "" serves the unix socket only

	Runtime     string        // OCI runtime binary: "runc"
	Memory      root.Bytes    // what machines may use together; 0: host memory minus Reserve
	Reserve     root.Bytes    // kept for the host and the platform
	Reclaim     time.Duration // a suspended machine's memory is given back after this; 0 at once
	Swap        string        // "auto" (zram where the kernel has it), "zram", "file:SIZE", "none"
	Logs        root.Bytes    // budget of each machine's log on disk
	LogBudget   root.Bytes    // of all logs together
	ImageBudget root.Bytes    // disk that images nobody needs may use
	ImageSweep  time.Duration // how often they are looked for; one used within it is kept

	Builds      int        // that run at a time
	BuildMemory root.Bytes // what builds may use together; 0: half of what machines may
	BuildCache  root.Bytes // disk for layers and cache mounts of builds
	BuildReach  []string   // private addresses and networks that builds may reach
	Registries  []Registry // mirrors and credentials

	HoldTimeout time.Duration // how long a request waits for a machine
	HoldQueue   int           // requests that may wait, per app
	LogLevel    string        // "debug", "info", "warn", "error"
	AccessLog   bool

	// ACMEDirectory is the certificate authority for public hostnames; "off":
	// none are obtained. Whoever leaves it on agrees to the authority's terms.
	ACMEDirectory string
	ACMEEmail     string // where it writes to about expiries; may be ""
	ACMERoot      string // file of certificates that its own API is trusted by; "": the system's

	Nameservers []string // where public names are asked; empty: the host's own

	KeepReleases int // of an app, with their images
	// TestFailpoint ends the control process once, at a point of a rollout:
	// "rollout:updated". For tests.
	TestFailpoint string
}

// Listen is one public address of the edge.
type Listen struct {
	Addr string // ":8080"
	Port int    // the port it stands for; 0: Addr's own
}

// Registry says how a registry is reached.
type Registry struct {
	Host         string   // as references name it: "docker.io"
	Mirrors      []string // "https://mirror.example.com", tried in order before the registry itself
	Username     string   // of the registry, or of its mirrors where it has any
	PasswordFile string   // file with the password, or a token
	PasswordEnv  string   // else the variable of the server's environment that has it
	PlainHTTP    bool     // without TLS
}

// Default is the configuration of a host that sets nothing.
func Default() Config {
	return Config{
		Data:   "/var/lib/roost",
		Run:    "/run/roost",
		Domain: "localhost",
		Region: root.DefaultRegion,
		Listen: []Listen{{Addr: ":80"}, {Addr: ":443"}},
		API:    "127.0.0.1:4280",

		Runtime:     "runc",
		Reserve:     512 * root.MiB,
		Reclaim:     time.Minute,
		Swap:        "auto",
		Logs:        16 * root.MiB,
		LogBudget:   2 * root.GiB,
		ImageBudget: 10 * root.GiB,
		ImageSweep:  10 * time.Minute,

		ACMEDirectory: "https://acme-v02.api.letsencrypt.org/directory",

		Builds:     1,
		BuildCache: 10 * root.GiB,

		HoldTimeout: time.Minute,
		HoldQueue:   1000,
		LogLevel:    "info",
		AccessLog:   true,

		KeepReleases: 20,
	}
}

// Paths of a running instance. Everything that exists only while it runs is
// under Run; everything that must survive is under Data.

// APISocket is the API for root on this host.
func (c *Config) APISocket() string { return filepath.Join(c.Run, "api.sock") }

// SupervisorSocket takes orders (package orders).
func (c *Config) SupervisorSocket() string { return filepath.Join(c.Run, "supervisor.sock") }

// ControlSocket is where the control process serves the edge: the catalog
// feed, and every API request the edge forwards.
func (c *Config) ControlSocket() string { return filepath.Join(c.Run, "control.sock") }

// StoreSocket is where the control process lends its image stores to the builder.
func (c *Config) StoreSocket() string { return filepath.Join(c.Run, "store.sock") }

// BuilderSocket is the builder's.
func (c *Config) BuilderSocket() string { return filepath.Join(c.Run, "builder.sock") }

// SwaponSocket is where OCI runtimes leave what the server process needs to
// answer swapon and swapoff of machines.
func (c *Config) SwaponSocket() string { return filepath.Join(c.Run, "swapon.sock") }

// EdgeSocket is where the edge answers questions about itself (status, metrics).
func (c *Config) EdgeSocket() string { return filepath.Join(c.Run, "edge.sock") }

// Effective is the file in which the server process leaves the configuration
// for its children.
func (c *Config) Effective() string { return filepath.Join(c.Run, "config.json") }

// RouterNamespace is the file that the router's network namespace is bound to.
func (c *Config) RouterNamespace() string { return filepath.Join(c.Run, "netns", "router") }

// BuildsNamespace is the file that builds' network namespace is bound to.
func (c *Config) BuildsNamespace() string { return filepath.Join(c.Run, "netns", "builds") }

// RegistryName is how images in the registry of this platform are named.
func (c *Config) RegistryName() string { return "registry." + c.Domain }

// RegistryAddresses are where else people on this host reach that registry,
// which is behind the API's address: an image has these names, too.
func (c *Config) RegistryAddresses() []string {
	_, port, err := net.SplitHostPort(c.API)
	if err != nil {
		return nil // no address: there is only the unix socket
	}
	return []string{c.API, net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("localhost", port)}
}

// BuildsReach are the networks of BuildReach, which has been checked.
func (c *Config) BuildsReach() []netip.Prefix {
	var list []netip.Prefix
	for _, s := range c.BuildReach {
		if p, err := parsePrefix(s); err == nil {
			list = append(list, p)
		}
	}
	return list
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// MachineDir holds what exists of one instance while it exists: bundles,
// root file system mounts, its API socket's directory.
func (c *Config) MachineDir(id root.InstanceID) string {
	return filepath.Join(c.Run, "machines", string(id))
}

// View is where the files of an image can be read while a machine of this host
// serves statics from it: mounted by the control process, read by the edge.
func (c *Config) View(d root.Digest) string {
	return filepath.Join(c.Views(), strings.ReplaceAll(string(d), ":", "-"))
}

// Views holds all of them.
func (c *Config) Views() string { return filepath.Join(c.Run, "views") }

// AppLogs is the budget of one app's logs: of its machines, those that are
// gone included, and of what the platform says about it.
func (c *Config) AppLogs() root.Bytes { return min(8*c.Logs, c.LogBudget) }

// LogDir holds the logs of one app's machines.
func (c *Config) LogDir(app root.AppName) string {
	return filepath.Join(c.Data, "logs", string(app))
}

// SecretsKey is the file with the key that app secrets are sealed with.
func (c *Config) SecretsKey() string { return filepath.Join(c.Data, "secrets.key") }

// LocalRoot is the file with the local certificate authority, for people who
// want to trust it.
func (c *Config) LocalRoot() string { return filepath.Join(c.Data, "local-ca.crt") }

// AdminToken is the file with the first token.
func (c *Config) AdminToken() string { return filepath.Join(c.Data, "admin.token") }
