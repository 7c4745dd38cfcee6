package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/roost-run/roost/machines"
)

const replayWarmUp, replayCycles = 500, 4000

// replay measures a request that its first machine sends on to a second, as
// the client sees it, against the same two requests made directly: past the
// platform, and through it.
func (w *world) replay(ctx context.Context) error {
	const app = "replay"
	var m [2]*machines.Machine
	var direct [2]*conn
	for i := range m {
		var err error
		if m[i], err = w.run(ctx, app, web(helloImage)); err != nil {
			return err
		}
		s, err := w.slot(ctx, m[i])
		if err != nil {
			return err
		}
		if direct[i], err = w.direct(net.JoinHostPort(s.Running.IPv4, "8080")); err != nil {
			return err
		}
		defer direct[i].Close()
	}
	path := "/replay?to=" + m[1].ID
	var replayed, issuer, target, first, second samples
	for n := range replayWarmUp + replayCycles {
		times := [5]time.Duration{}
		var err error
		for i, ask := range []func() (time.Duration, error){
			func() (time.Duration, error) { return w.ask(app, path, "Fly-Force-Instance-Id", m[0].ID) },
			func() (time.Duration, error) {
				t, _, err := direct[0].ask("x", path, http.StatusConflict)
				return t, err
			},
			func() (time.Duration, error) { t, _, err := direct[1].ask("x", path, http.StatusOK); return t, err },
			func() (time.Duration, error) { return w.ask(app, "/", "Fly-Force-Instance-Id", m[0].ID) },
			func() (time.Duration, error) { return w.ask(app, path, "Fly-Force-Instance-Id", m[1].ID) },
		} {
			if times[i], err = ask(); err != nil {
				return err
			}
		}
		if n < replayWarmUp {
			continue
		}
		replayed, issuer, target = append(replayed, times[0]), append(issuer, times[1]), append(target, times[2])
		first, second = append(first, times[3]), append(second, times[4])
	}
	r := w.report
	r.detail("Replayed request", replayed)
	r.detail("Issuer, past the platform", issuer)
	r.detail("Target, past the platform", target)
	r.detail("Issuer, through the edge", first)
	r.detail("Target, through the edge", second)
	r.below("Replay: first byte minus issuer and target past the platform (p50)",
		replayed.p50()-issuer.p50()-target.p50(), 300*time.Microsecond,
		fmt.Sprintf("replayed %s; direct %s + %s; minus both through the edge: %s", ms(replayed.p50()), ms(issuer.p50()), ms(target.p50()),
			ms(replayed.p50()-first.p50()-second.p50())))
	return w.api.DeleteApp(ctx, app, true)
}
