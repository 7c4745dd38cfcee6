package instance

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"
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
		"new   cgroup: /sys/fs/cgroup/pids/roost-012345",
		"new   sysctl: /proc/sys/vm/swappiness = 10",
		"gone  cgroup: /sys/fs/cgroup/pids/somebody",
		"gone  sysctl: /proc/sys/vm/swappiness = 60",
	}
	if diff := cmp.Diff(want, before.diff(after)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	if got := before.diff(before); got != nil {
		t.Errorf("with itself: %q", got)
	}
}

// TestDivide: beside others, what carries an instance's marks is its own, and
// so is what lies below its directory.
func TestDivide(t *testing.T) {
	in := &Instance{Dir: "/tmp/roost-123456789"}
	sum := sha256.Sum256([]byte("/tmp/roost-123456789/data"))
	name := hex.EncodeToString(sum[:3])
	before := HostState{
		"mount: / /mnt/theirs rw":                        true,
		"mount: / /data rw":                              true,
		"sysctl: /proc/sys/net/ipv4/ip_forward = 0":      true,
		"cgroup: /sys/fs/cgroup/pids/roost-" + name:      true, // of a Roost before this one
		"link: roost-fedcba@if2: <UP,LOWER_UP> mtu":      true,
		"process: 12 /usr/bin/program --of somebody":     true,
		"route: 169.254.66.100/30 dev roost-fedcba link": true,
	}
	after := HostState{
		"mount: / /data rw":    true,
		"mount: / /mnt/new rw": true,
		"mount: net:[1] /tmp/roost-123456789/run/netns/router rw":      true,
		"mount: net:[2] /tmp/roost-987654321/run/netns/router rw":      true,
		"sysctl: /proc/sys/net/ipv4/ip_forward = 1":                    true,
		"cgroup: /sys/fs/cgroup/pids/docker":                           true,
		"link: roost-" + name + "@if2: <UP,LOWER_UP> mtu":              true,
		"rule: table inet roost_" + name + " {":                        true,
		"rule: table inet roost_fedcba {":                              true,
		"process: 34 bin/roost edge --run /tmp/roost-123456789/run":    true,
		"swap: /tmp/roost-123456789/data/swap":                         true,
		"route: 169.254.64.100/30 dev roost-" + name + " proto kernel": true,
		"process: 12 /usr/bin/program --of somebody":                   true,
	}
	ours, others := divide(before.diff(after), in.Marks())
	if diff := cmp.Diff([]string{
		"new   link: roost-" + name + "@if2: <UP,LOWER_UP> mtu",
		"new   mount: net:[1] /tmp/roost-123456789/run/netns/router rw",
		"new   process: 34 bin/roost edge --run /tmp/roost-123456789/run",
		"new   route: 169.254.64.100/30 dev roost-" + name + " proto kernel",
		"new   rule: table inet roost_" + name + " {",
		"new   swap: /tmp/roost-123456789/data/swap",
		"gone  cgroup: /sys/fs/cgroup/pids/roost-" + name,
	}, ours); diff != "" {
		t.Errorf("its own (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"new   cgroup: /sys/fs/cgroup/pids/docker",
		"new   mount: / /mnt/new rw",
		"new   mount: net:[2] /tmp/roost-987654321/run/netns/router rw",
		"new   rule: table inet roost_fedcba {",
		"new   sysctl: /proc/sys/net/ipv4/ip_forward = 1",
		"gone  link: roost-fedcba@if2: <UP,LOWER_UP> mtu",
		"gone  mount: / /mnt/theirs rw",
		"gone  route: 169.254.66.100/30 dev roost-fedcba link",
		"gone  sysctl: /proc/sys/net/ipv4/ip_forward = 0",
	}, others); diff != "" {
		t.Errorf("of others (-want +got):\n%s", diff)
	}
}

// TestCheckMarked: beside somebody's change of the host the check of an
// instance of which nothing is left holds, and tells of it.
func TestCheckMarked(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: only root reads the host's firewall rules")
	}
	in := &Instance{Dir: "/tmp/roost-123456789"}
	const gone = "mount: / /mnt/theirs rw"
	before, err := ReadHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before[gone] = true
	others, err := CheckMarked(t.Context(), before, in.Marks(), in.Dir)
	if err != nil || !slices.Contains(others, "gone  "+gone) {
		t.Errorf("got %q, %v, want %q told", others, err, gone)
	}
}

// TestOthersGroups: groups that somebody else makes and removes are not
// compared, but any of Roost's, wherever it is.
func TestOthersGroups(t *testing.T) {
	for path, want := range map[string]bool{
		"/sys/fs/cgroup/system.slice/apt-daily.service":                    true,
		"/sys/fs/cgroup/unified/user.slice/user-0.slice/session-3.scope/x": true,
		"/sys/fs/cgroup/memory/docker/0123456789ab":                        true,
		"/sys/fs/cgroup/pids/roost-012345":                                 false,
		"/sys/fs/cgroup/pids/roost-012345/0e19ff7242add6":                  false,
		"/sys/fs/cgroup/memory/docker/0123456789ab/roost-012345":           false,
		"/sys/fs/cgroup/system.slice/roost.service":                        false,
		"/sys/fs/cgroup/pids/docker":                                       false,
	} {
		if got := othersGroup(path); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
}
