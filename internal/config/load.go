package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	root "github.com/roost-run/roost"
)

// DefaultFile is read when no other is named; it may be absent.
const DefaultFile = "/etc/roost/roost.toml"

// A Setting is one thing that can be set: as key = value in the file, as
// ROOST_KEY in the environment, as --key on the command line.
type Setting struct {
	Key   string // "reclaim_after"; the flag has dashes
	Usage string
	get   func(*Config) string
	set   func(*Config, string) error
}

// Flag is the setting's name on the command line.
func (s Setting) Flag() string { return strings.ReplaceAll(s.Key, "_", "-") }

// Env is the setting's name in the environment.
func (s Setting) Env() string { return "ROOST_" + strings.ToUpper(s.Key) }

// ForTests says that people have no use for it.
func (s Setting) ForTests() bool { return strings.HasPrefix(s.Key, "test_") }

// Default is the setting's default, as one would write it.
func (s Setting) Default() string {
	c := Default()
	return s.get(&c)
}

// Settings lists everything that can be set, in the order of the manual.
func Settings() []Setting {
	return []Setting{
		text("data", "directory of durable state", func(c *Config) *string { return &c.Data }),
		text("run", "directory of sockets and mounts, gone after a reboot", func(c *Config) *string { return &c.Run }),
		text("domain", "apps answer at <app>.<domain>", func(c *Config) *string { return &c.Domain }),
		{
			"region", "this host's region code",
			func(c *Config) string { return string(c.Region) },
			func(c *Config, v string) (err error) { c.Region, err = root.ParseRegion(v); return err },
		},
		{"listen", "public addresses, comma-separated; \":8080=80\" serves port 80's services on 8080; on all but port 80 clients may speak TLS", getListen, setListen},
		text("api", "address of the API, registry and dashboard; empty: unix socket only", func(c *Config) *string { return &c.API }),
		text("runtime", "OCI runtime binary", func(c *Config) *string { return &c.Runtime }),
		size("memory", "what machines may use together; 0: the host's memory minus reserve", func(c *Config) *root.Bytes { return &c.Memory }),
		size("reserve", "memory kept for the host and the platform", func(c *Config) *root.Bytes { return &c.Reserve }),
		duration("reclaim_after", "a suspended machine's memory is given back after this", func(c *Config) *time.Duration { return &c.Reclaim }),
		text("swap", "where suspended memory goes: auto, zram, none or file:SIZE", func(c *Config) *string { return &c.Swap }),
		size("logs", "disk for each machine's log", func(c *Config) *root.Bytes { return &c.Logs }),
		size("log_budget", "disk for all logs together", func(c *Config) *root.Bytes { return &c.LogBudget }),
		size("image_budget", "disk for images nobody needs", func(c *Config) *root.Bytes { return &c.ImageBudget }),
		duration("image_sweep", "how often images nobody needs are looked for; one used within that time is kept", func(c *Config) *time.Duration { return &c.ImageSweep }),
		text("acme_ca", "ACME directory of the certificate authority for public hostnames, whose terms you agree to by using it; off: none", func(c *Config) *string { return &c.ACMEDirectory }),
		text("acme_email", "where that authority may write to", func(c *Config) *string { return &c.ACMEEmail }),
		text("acme_root", "file of certificates by which that authority itself is trusted; empty: the system's", func(c *Config) *string { return &c.ACMERoot }),
		{
			"builds", "builds that run at a time",
			func(c *Config) string { return strconv.Itoa(c.Builds) },
			func(c *Config, v string) (err error) { c.Builds, err = strconv.Atoi(v); return err },
		},
		size("build_memory", "what builds may use together; 0: half of what machines may", func(c *Config) *root.Bytes { return &c.BuildMemory }),
		size("build_cache", "disk for layers and cache mounts of builds", func(c *Config) *root.Bytes { return &c.BuildCache }),
		{
			"build_reach", "private addresses and networks that builds may reach, comma-separated; public ones they always do",
			func(c *Config) string { return strings.Join(c.BuildReach, ",") },
			func(c *Config, v string) error { c.BuildReach = splitList(v); return nil },
		},
		duration("hold_timeout", "how long a request waits for a machine", func(c *Config) *time.Duration { return &c.HoldTimeout }),
		{
			"hold_queue", "requests of one app that may wait",
			func(c *Config) string { return strconv.Itoa(c.HoldQueue) },
			func(c *Config, v string) (err error) { c.HoldQueue, err = strconv.Atoi(v); return err },
		},
		text("log_level", "debug, info, warn or error", func(c *Config) *string { return &c.LogLevel }),
		{
			"access_log", "log every request",
			func(c *Config) string { return strconv.FormatBool(c.AccessLog) },
			func(c *Config, v string) (err error) { c.AccessLog, err = strconv.ParseBool(v); return err },
		},
		{
			"nameservers", "where public names are asked, comma-separated; empty: the host's own",
			func(c *Config) string { return strings.Join(c.Nameservers, ",") },
			func(c *Config, v string) error { c.Nameservers = splitList(v); return nil },
		},
		{
			"keep_releases", "releases of an app that can be rolled back to",
			func(c *Config) string { return strconv.Itoa(c.KeepReleases) },
			func(c *Config, v string) (err error) { c.KeepReleases, err = strconv.Atoi(v); return err },
		},
		text("test_failpoint", "for tests: end the control process once, at this point of a rollout", func(c *Config) *string { return &c.TestFailpoint }),
	}
}

// Load merges the sources: flags (by key; only those given) beat environ
// ("K=V" lines), which beats the file, which beats the defaults. An empty file
// means DefaultFile if that exists. All problems are reported at once, as
// errors of kind Invalid joined together.
func Load(flags map[string]string, environ []string, file string) (Config, error) {
	c := Default()
	settings := Settings()
	var problems []error
	apply := func(s Setting, value, source string) {
		next := c
		err := s.set(&next, value)
		if err == nil {
			c = next
			return
		}
		// What could not be read stays as it was, and is complained of once.
		problems = append(problems, root.Errorf(root.Invalid, "%s: %s = %q: %s", source, s.Key, value, reason(err)))
	}

	values, source, err := readFile(file)
	if err != nil {
		problems = append(problems, err)
	}
	byKey := func(key string) (Setting, bool) {
		i := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == key })
		if i < 0 {
			return Setting{}, false
		}
		return settings[i], true
	}
	if list, ok := values[registriesKey]; ok {
		delete(values, registriesKey)
		c.Registries, err = parseRegistries(list)
		if err != nil {
			problems = append(problems, root.Errorf(root.Invalid, "%s: %s", source, reason(err)))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		s, ok := byKey(key)
		if !ok {
			problems = append(problems, root.Errorf(root.Invalid, "%s: unknown key %q%s", source, key, suggest(key, settings, func(s Setting) string { return s.Key })))
			continue
		}
		v, err := fileValue(values[key])
		if err != nil {
			problems = append(problems, root.Errorf(root.Invalid, "%s: %s: %s", source, key, reason(err)))
			continue
		}
		apply(s, v, source)
	}
	for _, line := range environ {
		name, value, _ := strings.Cut(line, "=")
		key, ours := strings.CutPrefix(name, "ROOST_")
		if !ours || clientVariable(name) {
			continue
		}
		s, ok := byKey(strings.ToLower(key))
		if !ok {
			problems = append(problems, root.Errorf(root.Invalid, "environment: unknown variable %s%s", name, suggest(strings.ToLower(key), settings, Setting.Env)))
			continue
		}
		apply(s, value, "environment")
	}
	for _, key := range slices.Sorted(maps.Keys(flags)) {
		s, ok := byKey(key)
		if !ok {
			problems = append(problems, root.Errorf(root.Invalid, "unknown setting %q", key))
			continue
		}
		apply(s, flags[key], "--"+s.Flag())
	}
	problems = append(problems, c.check()...)
	return c, errors.Join(problems...)
}

// clientVariable: the command line reads these; they may stand in the same
// environment as the server's.
func clientVariable(name string) bool {
	return name == "ROOST_TOKEN" || name == "ROOST_URL" || name == "ROOST_APP" || name == "ROOST_CONFIG"
}

// String prints the configuration as a file that Load reads back. It holds no
// secrets.
func (c Config) String() string {
	var b strings.Builder
	for _, s := range Settings() {
		fmt.Fprintf(&b, "%s = %q\n", s.Key, s.get(&c))
	}
	for _, r := range c.Registries {
		b.WriteString(r.String())
	}
	return b.String()
}

func (c *Config) check() []error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, root.Errorf(root.Invalid, format, args...))
	}
	for _, dir := range []struct{ key, path string }{{"data", c.Data}, {"run", c.Run}} {
		if !filepath.IsAbs(dir.path) {
			bad("%s = %q: must be an absolute path", dir.key, dir.path)
		}
	}
	// A unix socket's path has 108 bytes (unix(7)); the longest of ours is a
	// machine's, run + 55.
	if len(c.Run) > 50 {
		bad("run = %q: longer than 50 characters, too long for the sockets in it", c.Run)
	}
	if c.Data == c.Run {
		bad("data and run are the same directory: run is emptied, data is kept")
	}
	for label := range strings.SplitSeq(c.Domain, ".") {
		if _, err := root.ParseAppName(label); err != nil {
			bad("domain = %q: not a domain name", c.Domain)
			break
		}
	}
	if len(c.Listen) == 0 {
		bad("listen: at least one address is needed")
	}
	seen := map[string]bool{}
	for _, l := range c.Listen {
		if _, _, err := net.SplitHostPort(l.Addr); err != nil {
			bad("listen: %q is not an address such as \":80\" or \"192.0.2.1:80\"", l.Addr)
		}
		if l.Port < 0 || l.Port > 65535 {
			bad("listen: %d is not a port", l.Port)
		}
		if seen[l.Addr] && !strings.HasSuffix(l.Addr, ":0") {
			bad("listen: %s stands twice", l.Addr)
		}
		seen[l.Addr] = true
	}
	if u, err := url.Parse(c.ACMEDirectory); c.ACMEDirectory != "off" && (err != nil || u.Host == "" || u.Scheme != "https") {
		bad("acme_ca = %q: neither an https:// address nor off", c.ACMEDirectory)
	}
	if c.ACMEEmail != "" && !strings.Contains(c.ACMEEmail, "@") {
		bad("acme_email = %q: not an e-mail address", c.ACMEEmail)
	}
	if c.ACMERoot != "" && !filepath.IsAbs(c.ACMERoot) {
		bad("acme_root = %q: must be an absolute path", c.ACMERoot)
	}
	if c.API != "" {
		if _, _, err := net.SplitHostPort(c.API); err != nil {
			bad("api = %q: not an address such as \"127.0.0.1:4280\"", c.API)
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log_level = %q: not one of debug, info, warn, error", c.LogLevel)
	}
	if size, ok := strings.CutPrefix(c.Swap, "file:"); ok {
		if n, err := ParseBytes(size); err != nil || n < 16*root.MiB {
			bad("swap = %q: the size must be at least 16MB, for example \"file:4GB\"", c.Swap)
		}
	} else if !slices.Contains([]string{"auto", "zram", "none"}, c.Swap) {
		bad("swap = %q: not one of auto, zram, none, file:SIZE", c.Swap)
	}
	if c.KeepReleases < 2 {
		bad("keep_releases = %d: must be at least 2, the current one and one to go back to", c.KeepReleases)
	}
	if c.HoldQueue < 1 {
		bad("hold_queue = %d: must be at least 1", c.HoldQueue)
	}
	if c.HoldTimeout <= 0 {
		bad("hold_timeout = %s: must be above zero", c.HoldTimeout)
	}
	if c.ImageSweep <= 0 {
		bad("image_sweep = %s: must be above zero", c.ImageSweep)
	}
	if c.Reclaim < 0 {
		bad("reclaim_after = %s: must not be negative", c.Reclaim)
	}
	if c.Memory < 0 || c.Reserve < 0 || c.Logs < root.MiB || c.LogBudget < c.Logs || c.ImageBudget < 0 {
		bad("memory, reserve and image_budget must not be negative, logs at least 1MB")
	}
	if c.Builds < 1 || c.BuildMemory < 0 || c.BuildCache < 0 {
		bad("builds must be at least 1, build_memory and build_cache not negative")
	}
	for _, s := range c.BuildReach {
		if _, err := parsePrefix(s); err != nil {
			bad("build_reach: %q is neither an address nor a network such as \"10.0.0.0/24\"", s)
		}
	}
	for _, ns := range c.Nameservers {
		if net.ParseIP(ns) == nil {
			if _, _, err := net.SplitHostPort(ns); err != nil {
				bad("nameservers: %q is not an address", ns)
			}
		}
	}
	return problems
}

func readFile(file string) (values map[string]any, source string, err error) {
	name := file
	if name == "" {
		name = DefaultFile
	}
	data, err := os.ReadFile(name)
	if err != nil {
		if file == "" && errors.Is(err, fs.ErrNotExist) {
			return nil, name, nil
		}
		return nil, name, root.Errorf(root.Invalid, "configuration file: %v", err)
	}
	if err := toml.Unmarshal(data, &values); err != nil {
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := de.Position()
			return nil, name, root.Errorf(root.Invalid, "%s:%d:%d: %s", name, line, column, de.Error())
		}
		return nil, name, root.Errorf(root.Invalid, "%s: %v", name, err)
	}
	return values, name, nil
}

// fileValue writes a TOML value as the command line would have it.
func fileValue(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case bool:
		return strconv.FormatBool(v), nil
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			p, err := fileValue(e)
			if err != nil {
				return "", err
			}
			parts[i] = p
		}
		return strings.Join(parts, ","), nil
	case map[string]any: // listen = [{addr = ":8080", port = 80}]
		addr, ok := v["addr"].(string)
		if !ok {
			return "", errors.New("an entry needs addr = \"...\"")
		}
		for k := range v {
			if k != "addr" && k != "port" {
				return "", fmt.Errorf("unknown key %q beside addr and port", k)
			}
		}
		if port, ok := v["port"].(int64); ok {
			return fmt.Sprintf("%s=%d", addr, port), nil
		}
		return addr, nil
	}
	return "", fmt.Errorf("a value of type %T does not fit here", v)
}

func getListen(c *Config) string {
	parts := make([]string, len(c.Listen))
	for i, l := range c.Listen {
		parts[i] = l.Addr
		if l.Port != 0 {
			parts[i] += "=" + strconv.Itoa(l.Port)
		}
	}
	return strings.Join(parts, ",")
}

func setListen(c *Config, v string) error {
	c.Listen = nil
	for _, part := range splitList(v) {
		addr, port, given := strings.Cut(part, "=")
		l := Listen{Addr: addr}
		if given {
			n, err := strconv.Atoi(port)
			if err != nil || n < 1 || n > 65535 {
				return fmt.Errorf("%q is not a port", port)
			}
			l.Port = n
		}
		c.Listen = append(c.Listen, l)
	}
	return nil
}

func splitList(v string) []string {
	var list []string
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}

func text(key, usage string, field func(*Config) *string) Setting {
	return Setting{
		key, usage, func(c *Config) string { return *field(c) },
		func(c *Config, v string) error { *field(c) = v; return nil },
	}
}

func duration(key, usage string, field func(*Config) *time.Duration) Setting {
	return Setting{
		key, usage, func(c *Config) string { return field(c).String() },
		func(c *Config, v string) (err error) { *field(c), err = time.ParseDuration(v); return err },
	}
}

func size(key, usage string, field func(*Config) *root.Bytes) Setting {
	return Setting{
		key, usage, func(c *Config) string { return formatBytes(*field(c)) },
		func(c *Config, v string) (err error) { *field(c), err = ParseBytes(v); return err },
	}
}

// ParseBytes reads a size: a number with an optional unit KB, MB or GB, in
// powers of 1024.
func ParseBytes(s string) (root.Bytes, error) {
	digits, unit := strings.TrimSpace(strings.ToUpper(s)), root.Bytes(1)
	for _, u := range []struct {
		suffix string
		unit   root.Bytes
	}{{"KB", root.KiB}, {"MB", root.MiB}, {"GB", root.GiB}, {"K", root.KiB}, {"M", root.MiB}, {"G", root.GiB}, {"B", 1}} {
		if d, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(d), u.unit
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || root.Bytes(n) > (1<<62)/unit {
		return 0, fmt.Errorf("%q is not a size such as 512MB or 2GB", s)
	}
	return root.Bytes(n) * unit, nil
}

func formatBytes(b root.Bytes) string {
	switch {
	case b != 0 && b%root.GiB == 0:
		return fmt.Sprintf("%dGB", b/root.GiB)
	case b != 0 && b%root.MiB == 0:
		return fmt.Sprintf("%dMB", b/root.MiB)
	}
	return strconv.FormatInt(int64(b), 10)
}

// suggest names the setting that shares most with a mistyped key, as it is
// called there.
func suggest(key string, settings []Setting, called func(Setting) string) string {
	best, bestScore := "", 0
	for _, s := range settings {
		score := 0
		for i := 0; i < min(len(key), len(s.Key)) && key[i] == s.Key[i]; i++ {
			score++
		}
		if strings.Contains(s.Key, key) || strings.Contains(key, s.Key) {
			score += 3
		}
		if score > bestScore {
			best, bestScore = called(s), score
		}
	}
	if bestScore < 3 {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

func reason(err error) string {
	if e, ok := errors.AsType[*strconv.NumError](err); ok {
		if errors.Is(e, strconv.ErrSyntax) && e.Func != "ParseBool" {
			return "not a whole number"
		}
		return e.Err.Error()
	}
	return err.Error()
}
