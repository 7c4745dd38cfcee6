package control

import (
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
)

// TestCrashLoopEndsTheWait: a first machine that crashes at every start fails
// its release after some restarts, not when the wait is over.
func TestCrashLoopEndsTheWait(t *testing.T) {
	d := newDeployment(t)
	n := definition("one", nil)
	n.Groups = n.Groups[:1]
	n.Groups[0].Config.Services[0].Checks = []root.Check{{Type: "tcp", Interval: time.Second, Timeout: time.Second}}
	n.Deploy.Smoke, n.Deploy.WaitTimeout = true, time.Hour
	r, err := d.Releases.Create(t.Context(), admin, "shop", n)
	d.must(err)
	var id root.MachineID
	d.must(d.cat.Wait(t.Context(), func(sn *root.Snapshot) bool {
		for _, m := range sn.Machines("shop") {
			if m.Status.State == root.StateStarted {
				id = m.ID
			}
		}
		return id != ""
	}))
	for restarts := 1; restarts <= crashLoop; restarts++ {
		_, err := d.host.put(t.Context(), id, func(st *root.Status) {
			st.State, st.Restarts, st.Exit = root.StateRestarting, restarts, &root.Exit{Code: 7, Restarting: true}
		})
		d.must(err)
	}
	if r := d.ended(r.Version); r.Progress.Status != root.ReleaseFailed || !strings.Contains(r.Progress.Message, "exit code 7, and again after each of 3 restarts") {
		t.Errorf("release: got %s %q", r.Progress.Status, r.Progress.Message)
	}
	d.expect("what the release made goes with it")
}
