package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

// An image that is lost keeps no other from being kept, and who wants it back
// is told what to do.
func TestLostImage(t *testing.T) {
	d := newDeployment(t)
	for _, image := range []string{"one", "two", "three"} {
		d.release(definition(image, nil))
	}
	d.images.mu.Lock()
	d.images.lost = []root.Digest{"sha256:two"}
	d.images.mu.Unlock()
	d.release(definition("four", nil))
	d.images.mu.Lock()
	got := slices.Sorted(slices.Values(d.images.protected["releases/shop"]))
	d.images.mu.Unlock()
	if want := []root.Digest{"sha256:four", "sha256:one", "sha256:three"}; !slices.Equal(got, want) {
		t.Errorf("protected: got %v, want %v", got, want)
	}
	_, err := d.Releases.Rollback(t.Context(), admin, "shop", 2, Rollback{})
	d.want(err, root.Precondition, "is no longer on this host")
	if left, err := d.store.Rollouts(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("rollouts left: %v, %v", left, err)
	}
	d.expect("after a rollback that was refused", "app four v4 started", "worker four v4 started")
}

// killedAt begins a release with a command in a process that dies there.
func (d *deployment) killedAt(point string) *root.Release {
	d.t.Helper()
	n := definition("one", nil)
	n.Deploy.ReleaseCommand = []string{"migrate"}
	died := d.life(point)
	r, err := d.Releases.Create(d.t.Context(), admin, "shop", n)
	d.must(err)
	patience.Receive(d.t, "the rollout to come to "+point, died)
	return r
}

// A command whose machine has left no trace may have run: it is not run again.
func TestCommandWithoutTrace(t *testing.T) {
	d := newDeployment(t)
	r := d.killedAt("command:made")
	d.end()
	for id := range d.machines() {
		if _, err := d.store.DeleteMachine(t.Context(), root.MachineID(id)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := d.base.Delete(t.Context(), "tombstones/", clientv3.WithPrefix())
	d.must(err)
	if graves, err := d.store.Tombstones(t.Context(), "shop"); err != nil || len(graves) != 0 {
		t.Fatalf("tombstones: %v, %v", graves, err)
	}
	d.life("")
	end := d.ended(r.Version)
	if end.Progress.Status != root.ReleaseFailed || !strings.Contains(end.Progress.Message, "not run twice") || d.host.began.Load() != 0 {
		t.Errorf("got %s %q, the command ran %d times; want failed, and not run", end.Progress.Status, end.Progress.Message, d.host.began.Load())
	}
	d.expect("after the failure")
}

// A process died after it had started a command and before that was written
// down: the command counts.
func TestCommandThatRanBefore(t *testing.T) {
	d := newDeployment(t)
	d.host.late.Store(true)
	r := d.killedAt("command:made")
	d.life("")
	end := d.ended(r.Version)
	if end.Progress.Status != root.ReleaseComplete || d.host.began.Load() != 1 {
		t.Errorf("got %s %q, the command ran %d times; want complete, and once", end.Progress.Status, end.Progress.Message, d.host.began.Load())
	}
}

// A release that hangs ends when it is cancelled, not with its timeout.
func TestCancelOfAnUpdateThatHangs(t *testing.T) {
	d := newDeployment(t)
	first := definition("one", nil)
	first.Groups = first.Groups[:1]
	d.release(first)
	d.host.hangs, d.host.givenUp = make(chan struct{}), make(chan root.InstanceID, 1)
	n := definition("two", map[string]string{"HANG": "1"})
	n.Groups = n.Groups[:1]
	n.Deploy.WaitTimeout = time.Hour
	r, err := d.Releases.Create(t.Context(), admin, "shop", n)
	d.must(err)
	patience.Receive(t, "the update to begin", d.host.hangs)
	d.must(d.Releases.Cancel(t.Context(), admin, "shop", r.Version))
	end := d.ended(r.Version)
	if end.Progress.Status != root.ReleaseInterrupted || !strings.Contains(end.Progress.Message, "cancelled by") {
		t.Errorf("got %s %q, want interrupted", end.Progress.Status, end.Progress.Message)
	}
	d.expect("after the end", "app one v1 started")
}

// A process that ends well has done its work, unless it was to serve; one that
// ends badly has not.
func TestProcessesThatEnd(t *testing.T) {
	for _, c := range []struct {
		group, ends string
		status      root.ReleaseStatus
	}{
		{"worker", "0", root.ReleaseComplete},
		{"worker", "01", root.ReleaseFailed},
		{"app", "0", root.ReleaseFailed},
	} {
		t.Run(c.group+" "+c.ends, func(t *testing.T) {
			d := newDeployment(t)
			n := definition("one", nil)
			n.Deploy.Smoke = true
			n.Groups = slices.DeleteFunc(n.Groups, func(g root.Group) bool { return g.Name != c.group })
			n.Groups[0].Config.Env = map[string]string{"ENDS": c.ends}
			r := d.release(n)
			if r.Progress.Status != c.status {
				t.Errorf("got %s %q, want %s", r.Progress.Status, r.Progress.Message, c.status)
			}
			warned := false
			d.must(d.Releases.Events(t.Context(), admin, "shop", r.Version, "", false, func(e root.ReleaseEvent) error {
				warned = warned || e.Warning && strings.Contains(e.Message, "exit code 0")
				return nil
			}))
			if warned != (c.status == root.ReleaseComplete) {
				t.Errorf("warned: %v", warned)
			}
		})
	}
}

// A release says whose lease it waits for, and goes on when that has ended.
func TestReleaseWaitsForALease(t *testing.T) {
	d := newDeployment(t)
	n := definition("one", nil)
	n.Groups = n.Groups[:1]
	d.release(n)
	var id root.MachineID
	for m := range d.machines() {
		id = root.MachineID(m)
	}
	lease, err := d.Machines.Acquire(t.Context(), admin, "shop", id, "", "somebody's work", time.Hour)
	d.must(err)
	n.Image = "two"
	r, err := d.Releases.Create(t.Context(), admin, "shop", n)
	d.must(err)
	released := false
	d.must(d.Releases.Events(t.Context(), admin, "shop", r.Version, "", true, func(e root.ReleaseEvent) error {
		if !released && e.Machine == id && strings.Contains(e.Waiting, "lease currently held by") {
			released = true
			return d.Machines.Release(t.Context(), admin, "shop", id, lease.Nonce)
		}
		return nil
	}))
	if end := d.ended(r.Version); !released || end.Progress.Status != root.ReleaseComplete {
		t.Errorf("got %s %q, want complete, after it said what it waits for (%v)", end.Progress.Status, end.Progress.Message, released)
	}
}

// A machine that was updated at rest and woken since runs again after a
// release that failed: what its spec once said is not what it was.
func TestWokenMachineRunsAfterTheWayBack(t *testing.T) {
	d := newDeployment(t)
	n := definition("one", nil)
	n.Groups = n.Groups[:1]
	d.release(n)
	state := func(s root.State) {
		for id := range d.machines() {
			rev, err := d.host.set(t.Context(), root.MachineID(id), s)
			d.must(err)
			d.must(d.cat.WaitRevision(t.Context(), rev))
		}
	}
	state(root.StateStopped)
	n.Image = "two"
	d.release(n)
	d.expect("updated at rest", "app two v2 stopped")
	state(root.StateStarted) // by a request
	d.out.status.Store(500)
	n.Image, n.Deploy.WaitTimeout = "three", time.Second
	if r := d.release(n); r.Progress.Status != root.ReleaseFailed {
		t.Errorf("got %s, want failed", r.Progress.Status)
	}
	d.expect("after the way back", "app two v2 started")
}

// The time of a command runs on while no control process watches it.
func TestCommandTimeCountsFromItsStart(t *testing.T) {
	now := time.Now()
	m := &root.Machine{}
	if got := beganAt(m, now); !got.Equal(now) {
		t.Errorf("not started: got %s, want now", got)
	}
	m.Status.Events = []root.Event{{Type: "start", At: now.Add(-time.Minute)}, {Type: "launch", At: now.Add(-time.Hour)}}
	if got := beganAt(m, now); !got.Equal(now.Add(-time.Minute)) {
		t.Errorf("started: got %s, want a minute ago", got)
	}
}

// A machine that nobody asks is put to rest before its checks pass: they are
// not waited for, and the app is asked from outside.
func TestMachineThatRestsBeforeItsChecksPass(t *testing.T) {
	d := newDeployment(t)
	n := definition("one", map[string]string{"RESTS": "1"})
	n.Groups = n.Groups[:1]
	n.Groups[0].Config.Services[0].Checks = []root.Check{{Type: "tcp", Interval: 10 * time.Second, Timeout: 2 * time.Second}}
	n.Deploy.WaitTimeout = time.Hour
	r := d.release(n)
	asked := false
	d.must(d.Releases.Events(t.Context(), admin, "shop", r.Version, "", false, func(e root.ReleaseEvent) error {
		asked = asked || e.Step == root.StepVerify && e.URL != ""
		return nil
	}))
	if r.Progress.Status != root.ReleaseComplete || !asked {
		t.Errorf("got %s %q, asked from outside: %v", r.Progress.Status, r.Progress.Message, asked)
	}
}
