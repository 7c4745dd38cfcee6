package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/roost-run/roost/internal/atomicfile"
)

// WriteEffective leaves c in the run directory, where the server's children
// read it.
func WriteEffective(c Config) error {
	data, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return fmt.Errorf("write effective configuration: %w", err)
	}
	return atomicfile.Write(c.Effective(), append(data, '\n'), 0o600)
}

// ReadEffective reads what WriteEffective left in the run directory run.
func ReadEffective(run string) (Config, error) {
	c := Config{Run: run}
	data, err := os.ReadFile(c.Effective())
	if err != nil {
		return Config{}, fmt.Errorf("read effective configuration (is \"roost server\" running with this run directory?): %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return Config{}, fmt.Errorf("read effective configuration %s: %w", (&Config{Run: run}).Effective(), err)
	}
	return c, nil
}

// InstanceName tells this Roost from others on the same host: 6 hex digits
// derived from the data directory. It prefixes names that live in the host's
// name spaces: links, tables, control groups.
func (c *Config) InstanceName() string {
	sum := sha256.Sum256([]byte(filepath.Clean(c.Data)))
	return hex.EncodeToString(sum[:3])
}

// HostNamespace is the file that the host's network namespace is bound to, for
// processes inside the router namespace.
func (c *Config) HostNamespace() string { return filepath.Join(c.Run, "netns", "host") }

// CgroupParent names the control group that all machines are in, in every
// hierarchy.
func (c *Config) CgroupParent() string { return "roost-" + c.InstanceName() }

// RuntimeRoot is the OCI runtime's own state directory.
func (c *Config) RuntimeRoot() string { return filepath.Join(c.Run, "runtime") }

// Journal is the server process's journal.
func (c *Config) Journal() string { return filepath.Join(c.Data, "journal") }
