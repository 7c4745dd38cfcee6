package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

const coldCycles = 25

// cold measures the wake of a stopped machine and the making of a new one,
// both against the machine's own bundle started by runc alone.
func (w *world) cold(ctx context.Context) error {
	const app = "cold"
	m, err := w.run(ctx, app, web(helloImage))
	if err != nil {
		return err
	}
	var wakes, bare, replies, created, synced samples
	for n := range coldCycles {
		if _, err := w.stop(ctx, app, m); err != nil {
			return err
		}
		if err := settle(ctx); err != nil {
			return err
		}
		t, err := w.ask(app, "/")
		if err != nil {
			return err
		}
		wakes = append(wakes, t)

		s, err := w.stop(ctx, app, m)
		if err != nil {
			return err
		}
		if err := settle(ctx); err != nil {
			return err
		}
		if t, err = w.bareRunc(ctx, n, s.Next); err != nil {
			return fmt.Errorf("bare runc: %w", err)
		}
		bare = append(bare, t)

		if t, err = syncFile(filepath.Join(w.Dir, "data")); err != nil {
			return err
		}
		synced = append(synced, t)
		if err := settle(ctx); err != nil {
			return err
		}
		begin := time.Now()
		fresh, err := w.api.Create(ctx, app, machines.CreateRequest{Config: web(helloImage)})
		if err != nil {
			return err
		}
		replies = append(replies, time.Since(begin))
		if _, err := w.ask(app, "/", "Fly-Force-Instance-Id", fresh.ID); err != nil {
			return err
		}
		created = append(created, time.Since(begin))
		if err := w.api.Destroy(ctx, app, fresh.ID, true); err != nil {
			return err
		}
		if _, err := w.api.Wait(ctx, app, fresh.ID, machines.WaitOptions{State: machines.StateDestroyed, Timeout: patience}); err != nil {
			return err
		}
		if _, err := w.api.Start(ctx, app, m.ID); err != nil {
			return err
		}
		if _, err := w.ask(app, "/"); err != nil {
			return err
		}
		if err := settle(ctx); err != nil {
			return err
		}
	}
	r := w.report
	r.detail("Stopped machine, request that wakes it", wakes)
	r.detail("The same bundle by bare runc, to the first byte", bare)
	r.detail("fsync of 4 KB in the data directory", synced)
	r.detail("Create by API, to the reply", replies)
	r.detail("Create by API, to the first byte of its port", created)
	r.below("Wake of a stopped machine: first byte, minus bare runc (p50)", wakes.p50()-bare.p50(), 15*time.Millisecond,
		fmt.Sprintf("wake %s, bare runc %s", ms(wakes.p50()), ms(bare.p50())))
	bar := 15*time.Millisecond + 3*synced.p50()
	r.below("Create + start by API: first byte of the port, minus bare runc (p50)", created.p50()-bare.p50(), bar,
		fmt.Sprintf("create %s (reply %s), bare runc %s, fsync %s", ms(created.p50()), ms(replies.p50()), ms(bare.p50()), ms(synced.p50())))
	return w.api.DeleteApp(ctx, app, true)
}

// bareRunc runs a prepared boot of a stopped machine with runc alone: the same
// config, root file system and network namespace, in a control group beside
// the machine's. The time runs until the program's port gave the first byte of an answer
// to a client where the edge stands.
func (w *world) bareRunc(ctx context.Context, n int, b *boot) (took time.Duration, err error) {
	id := fmt.Sprintf("%s-bare-%d", filepath.Base(w.Dir), n)
	data, err := os.ReadFile(filepath.Join(b.Bundle, "config.json"))
	if err != nil {
		return 0, err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return 0, err
	}
	linux, ok := config["linux"].(map[string]any)
	if !ok {
		return 0, errors.New("the bundle has no linux section")
	}
	group, ok := linux["cgroupsPath"].(string)
	if !ok {
		return 0, errors.New("the bundle has no control group")
	}
	linux["cgroupsPath"] = filepath.Join(filepath.Dir(group), id) // beside the machines: same limits, same share of the CPU
	if data, err = json.Marshal(config); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(w.Dir, "bare-")
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		return 0, err
	}
	state := filepath.Join(w.Dir, "bare")
	runc := func(ctx context.Context, args ...string) error {
		// Not CombinedOutput: the container would hold its pipe.
		if err := exec.CommandContext(ctx, "runc", append([]string{"--root", state, "--log", filepath.Join(dir, "log")}, args...)...).Run(); err != nil {
			said, _ := os.ReadFile(filepath.Join(dir, "log"))
			return fmt.Errorf("runc %s: %w: %s", args[0], err, said)
		}
		return nil
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		err = errors.Join(err, runc(clean, "delete", "--force", id), os.RemoveAll(dir))
	}()
	begin := time.Now()
	ran := make(chan error, 1)
	go func() { ran <- runc(ctx, "run", "--detach", "--bundle", dir, id) }()
	err = inNamespace(w.router(), func() error {
		c, err := connect(ctx, net.JoinHostPort(b.IPv4, "8080"))
		if err != nil {
			return err
		}
		defer c.Close()
		if _, _, err := newConn(c).ask("bare", "/", http.StatusOK); err != nil {
			return err
		}
		took = time.Since(begin) // the request's own time and the wait before it
		return nil
	})
	return took, errors.Join(err, <-ran)
}

// connect tries every millisecond until a port answers.
func connect(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s did not answer within %s", addr, patience))
	defer cancel()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			return c, nil
		}
		if instance.Pause(ctx, time.Millisecond) != nil {
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// syncFile measures one durable write of 4 KB, appended to a file as a log's is.
func syncFile(dir string) (took time.Duration, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "bench.sync"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	begin := time.Now()
	if _, err := f.Write(make([]byte, 4<<10)); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}
