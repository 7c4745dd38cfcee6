// Package compat drives a running Roost with clients that others wrote: the
// library that flyctl uses, at a pinned version.
package compat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"
	"github.com/superfly/fly-go/tokens"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/e2e/suite"
)

// in is the instance that all tests share; probe is an image that it has.
var in *instance.Instance

const probe = "registry.localhost/probe:latest"

func TestMain(m *testing.M) {
	suite.Main(m, 0, func(ctx context.Context, s *suite.Suite) (err error) {
		if in, err = s.Share(ctx, "--swap=none"); err != nil {
			return err
		}
		archive := filepath.Join(s.Dir, "probe.tar")
		if err := instance.BuildArchive(ctx, "../real/probe", probe, archive); err != nil {
			return err
		}
		_, err = in.CLI(ctx, "image", "load", archive)
		return err
	})
}

type quiet struct{}

func (quiet) Debug(...any)          {}
func (quiet) Debugf(string, ...any) {}

func newFlaps(t *testing.T, app string) *flaps.Client {
	t.Helper()
	t.Setenv("FLY_FLAPS_BASE_URL", in.API)
	c, err := flaps.NewWithOptions(t.Context(), flaps.NewClientOpts{AppName: app, Tokens: tokens.Parse(in.Token), Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// must ends the test when a call of the foreign client fails.
func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func status(err error) int {
	if e, ok := errors.AsType[*flaps.FlapsError](err); ok {
		return e.ResponseStatusCode
	}
	return 0
}

// TestLife takes a machine through its life as flyctl does: leased, updated,
// put to sleep and woken, looked into, destroyed.
func TestLife(t *testing.T) {
	ctx := t.Context()
	c := newFlaps(t, "life")
	must(t, "create app", c.CreateApp(ctx, "life", "personal"))
	must(t, "wait for app", c.WaitForApp(ctx, "life"))
	if err := c.CreateApp(ctx, "life", "personal"); status(err) != http.StatusUnprocessableEntity || !strings.Contains(err.Error(), "already been taken") {
		t.Errorf("taken app: got %v, want status 422", err)
	}
	port, suspend, second := 80, fly.MachineAutostopSuspend, fly.Duration{Duration: time.Second}
	config := &fly.MachineConfig{
		Image: probe, Guest: fly.MachinePresets["shared-cpu-1x"], Env: map[string]string{"A": "b"},
		Metadata:   map[string]string{fly.MachineConfigMetadataKeyFlyProcessGroup: "app", fly.MachineConfigMetadataKeyFlyPlatformVersion: "v2"},
		StopConfig: &fly.StopConfig{Timeout: &second},
		Services:   []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &suspend, Ports: []fly.MachinePort{{Port: &port, Handlers: []string{"http"}}}}},
	}
	m, err := c.Launch(ctx, fly.LaunchMachineInput{Config: config, Name: "one", LeaseTTL: 600})
	must(t, "launch", err)
	must(t, "wait until started", c.Wait(ctx, m, fly.MachineStateStarted, time.Minute))
	nonce := m.LeaseNonce
	if nonce == "" || m.HostStatus != fly.HostStatusOk || !strings.HasPrefix(m.ImageRef.Digest, "sha256:") || m.PrivateIP == "" {
		t.Errorf("launch: got %+v", m)
	}
	if err := c.Stop(ctx, fly.StopMachineInput{ID: m.ID}, ""); status(err) != http.StatusConflict || !strings.Contains(err.Error(), "lease currently held by") {
		t.Errorf("stop of a leased machine: got %v, want status 409", err)
	}
	ttl := 300
	lease, err := c.RefreshLease(ctx, m.ID, &ttl, nonce)
	must(t, "refresh lease", err)
	if lease.Data.Nonce != nonce || lease.Data.Version != m.InstanceID {
		t.Errorf("lease: got %+v, want the nonce %s and version %s", lease.Data, nonce, m.InstanceID)
	}

	config.Env["A"] = "c"
	updated, err := c.Update(ctx, fly.LaunchMachineInput{ID: m.ID, Config: config, Name: "one", Region: m.Region}, nonce)
	must(t, "update", err)
	if updated.ID != m.ID || updated.InstanceID == m.InstanceID || updated.Config.Env["A"] != "c" {
		t.Errorf("update: got %+v", updated)
	}
	must(t, "wait for the new version", c.Wait(ctx, updated, fly.MachineStateStarted, time.Minute))
	if got, err := c.Get(ctx, m.ID); err != nil {
		t.Errorf("get: %v", err)
	} else if _, err := got.MostRecentStartTimeAfterLaunch(); err != nil {
		t.Errorf("events after an update: %v", err)
	}

	must(t, "suspend", c.Suspend(ctx, m.ID, nonce))
	must(t, "wait until suspended", c.Wait(ctx, updated, fly.MachineStateSuspended, time.Minute))
	start, err := c.Start(ctx, m.ID, nonce)
	must(t, "start", err)
	if start.PreviousState != fly.MachineStateSuspended {
		t.Errorf("start: got previous state %q, want suspended", start.PreviousState)
	}
	must(t, "wait until started again", c.Wait(ctx, updated, fly.MachineStateStarted, time.Minute))
	must(t, "restart", c.Restart(ctx, fly.RestartMachineInput{ID: m.ID, Timeout: time.Second}, nonce))
	must(t, "wait until restarted", c.Wait(ctx, updated, fly.MachineStateStarted, time.Minute))
	must(t, "cordon", c.Cordon(ctx, m.ID, nonce))
	must(t, "uncordon", c.Uncordon(ctx, m.ID, nonce))
	must(t, "set metadata", c.SetMetadata(ctx, m.ID, "k", "v"))
	if md, err := c.GetMetadata(ctx, m.ID); err != nil || md["k"] != "v" || md[fly.MachineConfigMetadataKeyFlyProcessGroup] != "app" {
		t.Errorf("metadata: got %v, %v", md, err)
	}
	if list, err := c.List(ctx, "metadata.k=v"); err != nil || len(list) != 1 || list[0].InstanceID != updated.InstanceID {
		t.Errorf("list by metadata: got %+v, %v, want the machine with its version", list, err)
	}
	must(t, "delete metadata", c.DeleteMetadata(ctx, m.ID, "k"))
	must(t, "release lease", c.ReleaseLease(ctx, m.ID, nonce))
	if err := c.ReleaseLease(ctx, m.ID, nonce); err == nil || !strings.Contains(err.Error(), "lease not found") {
		t.Errorf("release again: got %v, want \"lease not found\" in it", err)
	}

	if err := listening(ctx, c, m.ID, ":8080"); err != nil {
		t.Error(err)
	}

	must(t, "stop", c.Stop(ctx, fly.StopMachineInput{ID: m.ID}, ""))
	must(t, "wait until stopped", c.Wait(ctx, updated, fly.MachineStateStopped, time.Minute))
	must(t, "stop again", c.Stop(ctx, fly.StopMachineInput{ID: m.ID}, ""))
	stopped, err := c.Get(ctx, m.ID)
	must(t, "get", err)
	if exit := stopped.GetLatestEventOfType("exit"); exit == nil || exit.Request == nil || !exit.Request.ExitEvent.RequestedStop {
		t.Errorf("events after a stop: got %+v, want an exit that was asked for", stopped.Events)
	}
	err = c.Wait(ctx, updated, fly.MachineStateStarted, time.Second)
	if status(errors.Unwrap(err)) != http.StatusRequestTimeout || !strings.Contains(err.Error(), "machine failed to reach desired state") {
		t.Errorf("wait in vain: got %v, want status 408", err)
	}
	must(t, "destroy", c.Destroy(ctx, fly.RemoveMachineInput{ID: m.ID}, ""))
	if list, err := c.ListActive(ctx); err != nil || len(list) != 0 {
		t.Errorf("list after destroy: got %+v, %v", list, err)
	}
}

// TestExec: the one-line form that flyctl sends.
func TestExec(t *testing.T) {
	ctx := t.Context()
	c := newFlaps(t, "exec")
	must(t, "create app", c.CreateApp(ctx, "exec", "personal"))
	m, err := c.Launch(ctx, fly.LaunchMachineInput{Config: &fly.MachineConfig{Image: probe}})
	must(t, "launch", err)
	must(t, "wait until started", c.Wait(ctx, m, fly.MachineStateStarted, time.Minute))
	out, err := c.Exec(ctx, m.ID, &fly.MachineExecRequest{Cmd: "/no/such/command 'a b'", Timeout: 10})
	if err == nil && out.ExitCode == 0 {
		t.Errorf("a command that does not exist: got %+v, want it to fail", out)
	}
	if err := c.Kill(ctx, m.ID); err != nil {
		t.Errorf("kill: %v", err)
	}
	must(t, "destroy", c.Destroy(ctx, fly.RemoveMachineInput{ID: m.ID, Kill: true}, ""))
	if _, err := c.Get(ctx, m.ID); err == nil {
		if got, _ := c.Get(ctx, m.ID); got.State != fly.MachineStateDestroyed {
			t.Errorf("after destroy: got state %s", got.State)
		}
	}
	if err := c.Destroy(ctx, fly.RemoveMachineInput{ID: m.ID, Kill: true}, ""); status(errors.Unwrap(err)) != http.StatusNotFound {
		t.Errorf("destroy again: got %v, want status 404", err)
	}
}

// listening waits until a process of the machine listens on the port, as
// flyctl sees it.
func listening(ctx context.Context, c *flaps.Client, id, port string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		ps, err := c.GetProcesses(ctx, id)
		if err != nil {
			return err
		}
		for _, p := range ps {
			for _, l := range p.ListenSockets {
				if strings.HasSuffix(l.Address, port) {
					return nil
				}
			}
		}
		if err := instance.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("no process listens on %s: %+v", port, ps)
		}
	}
}
