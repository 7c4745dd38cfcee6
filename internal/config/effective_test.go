package config

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEffective(t *testing.T) {
	c := Default()
	c.Run = t.TempDir()
	c.Data = "/somewhere/else"
	c.Listen = []Listen{{Addr: ":8080", Port: 80}}
	c.Reclaim = 3 * time.Second
	c.Nameservers = []string{"192.0.2.1:53"}
	if err := WriteEffective(c); err != nil {
		t.Fatal(err)
	}
	got, err := ReadEffective(c.Run)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func TestEffectiveMissing(t *testing.T) {
	if _, err := ReadEffective(t.TempDir()); err == nil {
		t.Error("got no error for a run directory without server")
	}
}

func TestInstanceName(t *testing.T) {
	a, b := Config{Data: "/var/lib/roost"}, Config{Data: "/var/lib/other"}
	if a.InstanceName() == b.InstanceName() || len(a.InstanceName()) != 6 {
		t.Errorf("names: got %q and %q, want two different ones of 6 digits", a.InstanceName(), b.InstanceName())
	}
}
