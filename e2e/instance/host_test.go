package instance

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDiff: every difference counts, but settings that are only in one state.
func TestDiff(t *testing.T) {
	before := HostState{
		"sysctl: /proc/sys/vm/swappiness = 60":              true,
		"sysctl: /proc/sys/net/ipv4/conf/x/rp_filter = 0":   true,
		"link: eth0: <UP> mtu":                              true,
		"cgroup: /sys/fs/cgroup/pids/somebody":              true,
		"mount: / /data rw":                                 true,
		"sysctl: /proc/sys/net/ipv4/conf/x/rp_filter_x = 0": true,
	}
	after := HostState{
		"sysctl: /proc/sys/vm/swappiness = 10":                      true,
		"sysctl: /proc/sys/net/ipv4/conf/x/rp_filter_x = 0":         true,
		"sysctl: /proc/sys/net/netfilter/nf_conntrack_max = 262144": true,
		"link: eth0: <UP> mtu":                                      true,
		"mount: / /data rw":                                         true,
		"cgroup: /sys/fs/cgroup/pids/roost-012345":                  true,
	}
	want := []string{
		"left behind  cgroup: /sys/fs/cgroup/pids/roost-012345",
		"left behind  sysctl: /proc/sys/vm/swappiness = 10",
		"taken away   cgroup: /sys/fs/cgroup/pids/somebody",
		"taken away   sysctl: /proc/sys/vm/swappiness = 60",
	}
	if diff := cmp.Diff(want, before.diff(after)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	if got := before.diff(before); got != nil {
		t.Errorf("with itself: %q", got)
	}
}

func TestUnits(t *testing.T) {
	for path, want := range map[string]bool{
		"/sys/fs/cgroup/system.slice/apt-daily.service":                    true,
		"/sys/fs/cgroup/unified/user.slice/user-0.slice/session-3.scope/x": true,
		"/sys/fs/cgroup/pids/roost-012345":                                 false,
		"/sys/fs/cgroup/pids/docker":                                       false,
	} {
		if got := unit.MatchString(path); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
}
