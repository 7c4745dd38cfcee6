package api

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"
	"github.com/superfly/fly-go/tokens"
)

type discard struct{}

func (discard) Debug(...any)          {}
func (discard) Debugf(string, ...any) {}

// TestForeignClient drives the API with the client library that flyctl uses.
func TestForeignClient(t *testing.T) {
	w := newWorld(t)
	t.Setenv("FLY_FLAPS_BASE_URL", w.URL)
	ctx := t.Context()
	c, err := flaps.NewWithOptions(ctx, flaps.NewClientOpts{AppName: "other", Tokens: tokens.Parse(w.token), Logger: discard{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateApp(ctx, "other", "personal"); err != nil {
		t.Fatalf("create app: %v", err)
	}
	if err := c.WaitForApp(ctx, "other"); err != nil {
		t.Fatalf("wait for app: %v", err)
	}
	var statusErr *flaps.FlapsError
	if err := c.CreateApp(ctx, "other", "personal"); !errors.As(err, &statusErr) || statusErr.ResponseStatusCode != 422 || *statusErr.StatusCode() != "name_taken" || statusErr.FlyRequestId == "" {
		t.Errorf("taken app: got %+v, %v", statusErr, err)
	}
	port, suspend := 80, fly.MachineAutostopSuspend
	grace := fly.Duration{Duration: 3 * time.Second}
	config := &fly.MachineConfig{
		Image: "a:1", Guest: fly.MachinePresets["shared-cpu-2x"], Metadata: map[string]string{fly.MachineConfigMetadataKeyFlyProcessGroup: "app"},
		Env: map[string]string{"A": "b"}, Restart: &fly.MachineRestart{Policy: fly.MachineRestartPolicyAlways}, StopConfig: &fly.StopConfig{Timeout: &grace},
		Services: []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &suspend, Ports: []fly.MachinePort{{Port: &port, Handlers: []string{"http"}}}}},
	}
	m, err := c.Launch(ctx, fly.LaunchMachineInput{Config: config, Name: "one", LeaseTTL: 13})
	if err != nil {
		t.Fatalf("launch: %v", err)
	}
	if m.LeaseNonce == "" || m.State != fly.MachineStateStarted || m.HostStatus != fly.HostStatusOk || m.FullImageRef() != "docker.io/library/debian:bookworm-slim@sha256:0" ||
		m.ProcessGroup() != "app" || *m.Config.Services[0].Autostop != suspend || m.Config.Guest.MemoryMB != 512 || m.Config.StopConfig.Timeout.Duration != grace.Duration {
		t.Errorf("launch: got %+v with config %+v", m, m.Config)
	}
	if _, err := m.MostRecentStartTimeAfterLaunch(); err != nil {
		t.Errorf("events of a new machine: %v", err)
	}
	if err := c.Wait(ctx, m, fly.MachineStateStarted, time.Minute); err != nil {
		t.Errorf("wait: %v", err)
	}
	err = c.Wait(ctx, m, fly.MachineStateStopped, time.Second)
	if !errors.As(err, &statusErr) || statusErr.ResponseStatusCode != http.StatusRequestTimeout || !strings.Contains(err.Error(), "machine failed to reach desired state") {
		t.Errorf("wait in vain: got %v, want status 408", err)
	}
	if err := c.Stop(ctx, fly.StopMachineInput{ID: m.ID}, ""); !errors.As(err, &statusErr) || statusErr.ResponseStatusCode != http.StatusConflict || !strings.Contains(err.Error(), "lease currently held by") {
		t.Errorf("stop without lease: got %v, want status 409", err)
	}
	ttl := 4
	lease, err := c.RefreshLease(ctx, m.ID, &ttl, m.LeaseNonce)
	if err != nil || lease.Status != "success" || lease.Data.Nonce != m.LeaseNonce {
		t.Fatalf("refresh lease: got %+v, %v", lease, err)
	}
	if found, err := c.FindLease(ctx, m.ID); err != nil || found.Data.Version != m.InstanceID {
		t.Errorf("find lease: got %+v, %v", found, err)
	}
	nonce := m.LeaseNonce
	config.Env["A"] = "c"
	updated, err := c.Update(ctx, fly.LaunchMachineInput{ID: m.ID, Config: config, Name: "one", Region: m.Region}, nonce)
	if err != nil || updated.InstanceID == m.InstanceID || updated.Config.Env["A"] != "c" {
		t.Fatalf("update: got %+v, %v", updated, err)
	}
	if err := c.Suspend(ctx, m.ID, nonce); err != nil {
		t.Errorf("suspend: %v", err)
	}
	if r, err := c.Start(ctx, m.ID, nonce); err != nil || r.PreviousState != "suspended" {
		t.Errorf("start: got %+v, %v", r, err)
	}
	if err := c.Restart(ctx, fly.RestartMachineInput{ID: m.ID, Timeout: 5 * time.Second, Signal: "SIGTERM", ForceStop: true}, nonce); err != nil {
		t.Errorf("restart: %v", err)
	}
	if err := c.Cordon(ctx, m.ID, nonce); err != nil {
		t.Errorf("cordon: %v", err)
	}
	if err := c.Uncordon(ctx, m.ID, nonce); err != nil {
		t.Errorf("uncordon: %v", err)
	}
	if err := c.ReleaseLease(ctx, m.ID, nonce); err != nil {
		t.Errorf("release lease: %v", err)
	}
	if err := c.ReleaseLease(ctx, m.ID, nonce); err == nil || !strings.Contains(err.Error(), "lease not found") {
		t.Errorf("release again: got %v, want \"lease not found\" in it", err)
	}
	if err := c.Kill(ctx, m.ID); err != nil || !strings.HasSuffix(w.lastCall(), " 9") {
		t.Errorf("kill: %v, control was asked %s", err, w.lastCall())
	}
	if err := c.SetMetadata(ctx, m.ID, "k", "v"); err != nil {
		t.Errorf("set metadata: %v", err)
	}
	if md, err := c.GetMetadata(ctx, m.ID); err != nil || md["k"] != "v" {
		t.Errorf("metadata: got %v, %v", md, err)
	}
	if err := c.DeleteMetadata(ctx, m.ID, "k"); err != nil {
		t.Errorf("delete metadata: %v", err)
	}
	if out, err := c.Exec(ctx, m.ID, &fly.MachineExecRequest{Cmd: "echo 'a b'", Timeout: 5}); err != nil || out.ExitCode != 3 || out.StdErr != "err" {
		t.Errorf("exec: got %+v, %v", out, err)
	}
	if ps, err := c.GetProcesses(ctx, m.ID); err != nil || len(ps) != 1 || ps[0].ListenSockets[0].Address != "[::]:8080" {
		t.Errorf("processes: got %+v, %v", ps, err)
	}
	list, err := c.List(ctx, "include_deleted=false")
	if err != nil || len(list) != 1 || list[0].ID != m.ID {
		t.Errorf("list: got %+v, %v", list, err)
	}
	if err := c.Destroy(ctx, fly.RemoveMachineInput{ID: m.ID, Kill: true}, ""); err != nil {
		t.Errorf("destroy: %v", err)
	}
	if _, err := c.Get(ctx, m.ID); !errors.Is(err, flaps.FlapsErrorNotFound) {
		t.Errorf("get after destroy: got %v, want not found", err)
	}
}
