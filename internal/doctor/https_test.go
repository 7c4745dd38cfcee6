package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roost-run/roost/internal/config"
)

func TestHTTPS(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*config.Config)
		level  Level
		detail string
	}{
		"the default": {func(*config.Config) {}, OK, "letsencrypt"},
		"other addresses": {func(c *config.Config) {
			c.Listen = []config.Listen{{Addr: ":8080", Port: 80}, {Addr: ":8443", Port: 443}}
		}, OK, "on :8443"},
		"no authority":    {func(c *config.Config) { c.ACMEDirectory = "off" }, OK, "uploaded"},
		"no TLS":          {func(c *config.Config) { c.Listen = []config.Listen{{Addr: ":80"}} }, Warn, "no address stands for port 443"},
		"no plain HTTP":   {func(c *config.Config) { c.Listen = []config.Listen{{Addr: ":443"}} }, Warn, "no address stands for port 80"},
		"no root file":    {func(c *config.Config) { c.ACMERoot = filepath.Join(dir, "none.pem") }, Fatal, "cannot be read"},
		"empty root file": {func(c *config.Config) { c.ACMERoot = empty }, Fatal, "no certificate in acme_root"},
		"unused root":     {func(c *config.Config) { c.ACMERoot, c.ACMEDirectory = empty, "off" }, OK, "uploaded"},
	} {
		cfg := config.Default()
		c.change(&cfg)
		f := https(cfg)
		if f.Level != c.level || !strings.Contains(f.Detail, c.detail) || (f.Level != OK) != (f.Mend != "") {
			t.Errorf("%s: got %+v, want %s with %q", name, f, c.level, c.detail)
		}
	}
}
