package config

import (
	"bytes"
	"strings"
	"testing"
)

func TestLogger(t *testing.T) {
	c := Default()
	c.LogLevel = "warn"
	var b bytes.Buffer
	log := c.Logger(&b, "edge")
	log.Info("not asked for")
	log.Warn("a thing happened", "app", "shop")
	got := b.String()
	if strings.Contains(got, "not asked for") || !strings.Contains(got, `process=edge`) || !strings.Contains(got, `msg="a thing happened"`) || !strings.Contains(got, "app=shop") {
		t.Errorf("got %q, want the warning alone, with its process", got)
	}
}
